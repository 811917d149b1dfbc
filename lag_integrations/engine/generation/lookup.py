"""Log lookup: how an answer may go on, by what its logs and its prompt say.

Where an answer repeats a log, the log says what comes next. Several such tokens are read in one
pass, and those kept that the model takes itself (prompt lookup decoding, as in transformers'
``prompt_lookup_num_tokens``; speculative decoding, arXiv 2211.17192, with a draft that costs
nothing). The answer is the same, token by token.
"""

from __future__ import annotations

from collections.abc import Sequence

_NGRAM = 3
"""Least tokens that must be alike before a proposal."""
_SURE = 16
"""Tokens alike after which a proposal is hardly ever wrong."""
_TRIED = 16
"""Latest places that are compared."""
_FIRST, _MOST = 7, 15
"""Tokens that are proposed at once: at first, and after all were right."""
_INTEREST = 0.015
"""What a token of the answer adds to what wrong proposals may cost: the share lost at worst."""


class LogLookup:
    """Proposes tokens, and does so less when they are wrong.

    What proposals may cost, in passes, is what right ones have saved and a small share of the
    answer: an answer that repeats nothing takes hardly longer.

    Args:
        token_ids: The prompt, with the segments' tokens in their place.
    """

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._tokens = list(token_ids)
        self._ends: dict[tuple[int, ...], list[int]] = {}
        self._indexed = _NGRAM
        self._credit = 1.0
        self._number = _FIRST

    def add(self, token: int) -> None:
        """Note a token of the answer."""
        self._credit += _INTEREST
        self._tokens.append(token)

    def propose(self, most: int, cost: float) -> list[int]:
        """Return tokens that may come next.

        Args:
            most: How many at most.
            cost: What reading them takes longer, in passes.
        """
        for end in range(self._indexed, len(self._tokens)):  # something follows these
            self._ends.setdefault(tuple(self._tokens[end - _NGRAM : end]), []).append(end)
        self._indexed = max(_NGRAM, len(self._tokens))
        best, length = 0, 0
        for end in reversed(self._ends.get(tuple(self._tokens[-_NGRAM:]), [])[-_TRIED:]):
            if (alike := self._alike(end)) > length:
                best, length = end, alike
            if length >= _SURE:
                break
        if not length or (self._credit < cost and length < _SURE):
            return []
        return self._tokens[best : best + min(most, self._number)]

    def judge(self, proposed: int, accepted: int, cost: float) -> None:
        """Note how many of the proposed tokens were right.

        Args:
            proposed: How many there were.
            accepted: How many of them were right.
            cost: What reading them took longer, in passes.
        """
        self._credit += accepted - cost
        self._number = _MOST if accepted == proposed else _FIRST

    def _alike(self, end: int) -> int:
        """Return how many tokens before a place are those at the end."""
        length, tokens = 0, self._tokens
        while length < min(end, _SURE) and tokens[end - 1 - length] == tokens[-1 - length]:
            length += 1
        return length
