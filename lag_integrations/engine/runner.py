"""The model, its forward passes, and what it read lately."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from lag_integrations.engine.generation.sequence import SequenceState
from lag_integrations.errors import LAGError
from lag_integrations.kv.cache import beginning, shorten
from lag_integrations.kv.forward import Unread, can_read_together, read_next, read_together
from lag_integrations.kv.position_scheme import Positions
from lag_integrations.kv.prefix_cache import PUBLIC, PrefixCache, count_slots

logger = logging.getLogger(__name__)


class ModelRunner:
    """Runs forward passes, on the thread of the inference loop alone.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        positions: Its position scheme.
        fingerprint: Id of its fingerprint.
        prefixes: Keys and values of recent prompts.

    Attributes:
        name: The model's name, for people.
        tokenizer: As above.
        positions: As above.
        fingerprint: As above.
        prefixes: As above.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        positions: Positions,
        fingerprint: str,
        prefixes: PrefixCache,
    ) -> None:
        self.name = str(model.name_or_path or type(model).__name__)
        self.tokenizer = tokenizer
        self.prefixes = prefixes
        self.positions = positions
        self.fingerprint = fingerprint
        self._model: PreTrainedModel | None = model

    @property
    def model(self) -> PreTrainedModel:
        """The model.

        Raises:
            LAGError: It was released.
        """
        if self._model is None:
            raise LAGError(f"The engine of {self.name} is closed; load it again.")
        return self._model

    @property
    def closed(self) -> bool:
        """Whether the model was released."""
        return self._model is None

    @property
    def vocabulary(self) -> int:
        """Number of logits."""
        return int(self.model.get_output_embeddings().out_features)

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens with which the model ends an answer."""
        stated = self.model.generation_config.eos_token_id
        tokens = stated if isinstance(stated, list) else [stated, self.tokenizer.eos_token_id]
        return frozenset(token for token in tokens if token is not None)

    @cached_property
    def can_batch(self) -> bool:
        """Whether sequences can share a pass of this architecture; tried once."""
        able = can_read_together(self.model)
        if not able:
            logger.warning(
                "%s cannot read several sequences in one pass; they take turns.", self.name
            )
        return able

    def tokens_of(self, text: str) -> list[int]:
        """Return the tokens of a text, without those that a tokenizer puts around it."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def close(self) -> None:
        """Release the model."""
        self._model = None
        self.prefixes.clear()

    def read(self, rows: Sequence[Unread]) -> list[torch.Tensor | Exception]:
        """Let the model read tokens of several sequences, in one pass if it can.

        Returns:
            Of each sequence the logits ``[rows[…].logits, vocabulary]``, or what went wrong with
            it; its cache is then as it was.
        """
        if len(rows) > 1 and self.can_batch:
            before = [row.cache.get_seq_length() for row in rows]
            try:
                return list(read_together(self.model, rows))
            except Exception as error:  # of one of them, or of their number: each alone, then
                logger.debug("A pass of %d sequences failed: %s", len(rows), type(error).__name__)
                for row, tokens in zip(rows, before, strict=True):
                    shorten(row.cache, tokens)
        return [self._read_alone(row) for row in rows]

    def _read_alone(self, row: Unread) -> torch.Tensor | Exception:
        before = row.cache.get_seq_length()
        try:
            return read_next(self.model, row)
        except Exception as error:
            shorten(row.cache, before)
            return error

    def keep_prefix(self, sequence: SequenceState, cache: DynamicCache) -> None:
        """Keep what was read of a sequence, for prompts that begin alike."""
        if self._model is None or cache.get_seq_length() != count_slots(sequence.read):
            return  # the prompt was not read to its end
        request, read = sequence.request, sequence.read
        self.prefixes.insert(read, cache, salt=request.cache_salt, since=request.moment)
        if request.public and not self.prefixes.has_public(read[: request.public]):
            shared = beginning(cache, request.public)
            self.prefixes.insert(read[: request.public], shared, salt=PUBLIC)
