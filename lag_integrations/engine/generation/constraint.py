"""Answers that fit a grammar: token masks by llguidance."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lag_integrations.errors import ConstraintError

if TYPE_CHECKING:
    from llguidance import LLMatcher


def can_constrain() -> bool:
    """Return whether answers can be held to a grammar: whether llguidance is installed."""
    return find_spec("llguidance") is not None


class Grammars:
    """Compiles grammars for one tokenizer.

    Args:
        tokenizer: A fast tokenizer.
        vocabulary: Size of the model's logits.
        end_tokens: Tokens that end an answer.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, end_tokens: frozenset[int]
    ) -> None:
        try:
            from llguidance import hf
        except ImportError:
            raise ConstraintError(
                "Answers of a given form (structured output, tool_choice) need llguidance. Install "
                "it with: pip install 'lag_integrations[constrained]'"
            ) from None
        if not end_tokens:
            raise ConstraintError(
                "The model and its tokenizer name no end-of-sequence token, with which an answer "
                "of a given form could end; set tokenizer.eos_token."
            )
        self._vocabulary = max(vocabulary, len(tokenizer))
        self._tokens = hf.from_tokenizer(
            tokenizer, n_vocab=self._vocabulary, eos_token=sorted(end_tokens)
        )

    def constraint(self, grammar: str) -> Constraint:
        """Return a constraint for one answer.

        Args:
            grammar: A grammar in llguidance's Lark dialect.

        Raises:
            ConstraintError: The grammar is not valid.
        """
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            reason = matcher.get_error().strip().splitlines()[0]
            raise ConstraintError(f"Answers cannot be held to this form: {reason}")
        return Constraint(matcher, self._vocabulary)


class Constraint:
    """Holds one answer to a grammar.

    Args:
        matcher: llguidance's state.
        vocabulary: Number of tokens that it knows.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    @property
    def complete(self) -> bool:
        """Whether nothing more may follow."""
        return bool(self._matcher.is_stopped())

    def mask(self, logits: torch.Tensor) -> None:
        """Set the logits ``[vocabulary]`` of tokens that may not follow to minus infinity."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        found = np.unpackbits(bits, count=self._vocabulary, bitorder="little").view(np.bool_)
        allowed = torch.from_numpy(found[: logits.shape[0]])
        logits[: allowed.shape[0]].masked_fill_(~allowed.to(logits.device), -torch.inf)

    def forced(self, left: int) -> list[int]:
        """Return the tokens that must follow, at most ``left``."""
        return [] if self.complete else list(self._matcher.compute_ff_tokens())[:left]

    def accept(self, token: int) -> None:
        """Note that a token was taken."""
        self._matcher.consume_token(token)
