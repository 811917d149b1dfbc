"""Tokens to text, as they come: whole characters only, and nothing of a stop text."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase


class AnswerText:
    """The text of one answer.

    Args:
        tokenizer: A fast tokenizer.
        stop: Texts that end the answer and are not part of it.
        hidden: Tokens that are not text (special tokens).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: Sequence[str],
        suppressed_tokens: frozenset[int],
    ) -> None:
        self.stopped = False
        self._tokenizer = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=False)
        self._stop = tuple(text for text in stop if text)
        self._hidden = suppressed_tokens
        self._held = ""
        self._tokens: list[int] = []  # from the last one of which all text is known
        self._shown = 0  # of these

    def add(self, token: int) -> str:
        """Take a token, and return the text that is certain now."""
        if token in self._hidden or self.stopped:
            return ""
        self._held += self._decode(token)
        places = [place for text in self._stop if (place := self._held.find(text)) >= 0]
        if places:
            self.stopped = True
            return self._give(min(places))
        return self._give(len(self._held) - _unsafe_tail(self._held, self._stop))

    def _decode(self, token: int) -> str:
        """Return the text that a token completes, if it does."""
        self._tokens.append(token)
        try:
            text = self._stream.step(self._tokenizer, token) or ""
        except Exception:
            # Of broken bytes behind a byte token, tokenizers says "Invalid prefix encountered".
            shown, text = self._text_of(self._tokens[: self._shown]), self._text_of(self._tokens)
            text = text.removeprefix(shown)
            self._stream = DecodeStream(skip_special_tokens=False)
            self._stream.step(self._tokenizer, token)  # so that the next is not the first one
        if text:
            self._tokens, self._shown = [token], 1
        return text

    def _text_of(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False)) if tokens else ""

    def finish(self) -> str:
        """Return the text held back; a character that was cut in half is left out."""
        return "" if self.stopped else self._give(len(self._held))

    def _give(self, length: int) -> str:
        given, self._held = self._held[:length], self._held[length:]
        return given


def _unsafe_tail(text: str, stop: tuple[str, ...]) -> int:
    """Return characters at the end that may be the beginning of a stop text."""
    held = 0
    for sequence in stop:
        for length in range(min(len(sequence) - 1, len(text)), held, -1):
            if text.endswith(sequence[:length]):
                held = length
                break
    return held
