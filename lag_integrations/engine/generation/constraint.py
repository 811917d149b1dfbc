"""Answers that fit a grammar: token masks by llguidance, and a way to the end that fits.

A mask alone keeps a small model from writing anything invalid, but not from writing for ever: cut
off at its last token, an object is not an object. So wherever an answer could outgrow what is left
of its tokens, a short way to the end is known, and taken when there is room for nothing else. The
way is found by trying; where none is found (patterns with an end of their own), the mask is all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lag_integrations.errors import ConstraintError

if TYPE_CHECKING:
    from llguidance import LLMatcher

Mask: TypeAlias = "np.ndarray[Any, np.dtype[np.bool_]]"

_MARGIN = 16
"""Tokens before the end from which every token is looked at."""
_LONGEST = 1000
"""Tokens after which a way to the end is given up."""
_STALLED = 4
"""Steps without any change after which other characters are tried."""
_STRUCTURAL = frozenset(b'{}[]",:<>\\')
"""In free text or a string, a token without any of these leaves the way to the end as it is."""
_ENDINGS = ('}]",0123456789ntf:[{-.', '}],0123456789ntf-"[:{.')
"""Outside of strings, what leads to the end soonest: two orders, since one may run in circles."""
_HOPELESS = 150
"""Steps without any change after which a way is given up."""
_PRINTABLE = [bytes([code]) for code in range(32, 127) if code not in b'"\\']
_TAILS = (b"", b"a", b"1", b"a.a")
"""What may have to follow a character before anything may end."""


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
        self._tokens = hf.from_tokenizer(
            tokenizer, n_vocab=max(vocabulary, len(tokenizer)), eos_token=sorted(end_tokens)
        )
        self._endings = _Endings(self._tokens, end_tokens)

    def constraint(self, grammar: str, max_new_tokens: int) -> Constraint:
        """Return a constraint for one answer.

        Args:
            grammar: A grammar in llguidance's Lark dialect.
            max_new_tokens: Tokens the answer may have.

        Raises:
            ConstraintError: The grammar is not valid, or no answer is known to be that short.
        """
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            reason = matcher.get_error().strip().splitlines()[0]
            raise ConstraintError(f"Answers cannot be held to this form: {reason}")
        return Constraint(matcher, self._endings, max_new_tokens)


class Constraint:
    """Holds one answer to a grammar.

    Attributes:
        cut_short: Whether the end was sought because the tokens ran out.
    """

    def __init__(self, matcher: LLMatcher, endings: _Endings, max_new_tokens: int) -> None:
        self.cut_short = False
        self._matcher = matcher
        self._endings = endings
        self._way: list[int] = []  # to the end, once it must be taken
        self._in_text = False
        # None: there is no way known, so the form is kept, but the end cannot be promised.
        self._length: int | None = None
        way = endings.shortest(matcher, max(_LONGEST, max_new_tokens))
        if way is not None and len(way) > max_new_tokens:
            raise ConstraintError(
                f"An answer of this form needs at least {len(way)} tokens, and {max_new_tokens} "
                "are allowed; raise max_tokens or ask for less."
            )
        if way is not None:
            self._length = len(way)

    @property
    def complete(self) -> bool:
        """Whether nothing more may follow, or nothing more will."""
        if self.cut_short:
            return not self._way
        return bool(self._matcher.is_stopped())

    def mask(self, logits: torch.Tensor) -> None:
        """Set the logits ``[vocabulary]`` of tokens that may not follow to minus infinity."""
        if self._way:
            return  # they are not asked for
        found = self._endings.allowed(self._matcher)
        self._in_text = self._endings.is_text(found)
        allowed = torch.from_numpy(found[: logits.shape[0]])
        logits[: allowed.shape[0]].masked_fill_(~allowed.to(logits.device), -torch.inf)

    def vet(self, token: int, left: int) -> int | None:
        """Return the token, or another if the end could not be reached after it in the tokens left.

        None means that the answer ends here.
        """
        if self._way:
            return self._way[0]
        if self._length is None:
            return token
        near = left <= self._length + _MARGIN
        if not near and self._in_text and not self._endings.structural[token]:
            return token
        after = self._matcher.deep_copy()
        if after.consume_token(token) and not after.is_error():
            way = self._endings.shortest(after, left - 1)
            if way is not None:
                self._length = len(way)
                return token
        way = self._endings.shortest(self._matcher, left)
        if way is None:
            return token
        self.cut_short = True
        self._way = way
        return way[0] if way else None

    def forced(self, left: int) -> list[int]:
        """Return the tokens that must follow, at most ``left``."""
        if self._way or self.complete:
            return []
        return list(self._matcher.compute_ff_tokens())[:left]

    def accept(self, token: int) -> None:
        """Note that a token was taken."""
        if self._way:
            self._way.pop(0)
        self._matcher.consume_token(token)


class _Endings:
    """Finds a short way from a state of a grammar to where an answer may end."""

    def __init__(self, tokens: Any, end_tokens: frozenset[int]) -> None:
        texts = [tokens.decode_bytes([token]) for token in range(tokens.vocab_size)]
        self.structural = np.array([bool(_STRUCTURAL & set(text)) for text in texts])
        single = {text: token for token, text in reversed(list(enumerate(texts)))}
        self._quote, self._probe = single.get(b'"'), single.get(b"~")
        self._singles = [single[text] for text in _PRINTABLE if text in single]
        self._tails = [
            [single[bytes([code])] for code in tail]
            for tail in _TAILS
            if all(bytes([code]) in single for code in tail)
        ]
        self._enders = [single[text] for text in (b'"', b"}", b"]", b",") if text in single]
        self._orders = [self._ranks(texts, order, end_tokens) for order in _ENDINGS]
        # The second order takes the other branch where letters decide.
        self._orders[1] += np.arange(len(texts), 0, -1) / (len(texts) + 1)

    @staticmethod
    def _ranks(texts: list[bytes], order: str, end_tokens: frozenset[int]) -> Any:
        rank = {text.encode(): place for place, text in enumerate(order)}
        # Other tokens: the shorter the sooner, so that patterns grow by little.
        ranks = np.array(
            [rank.get(text, len(rank) + (len(text) or 1_000)) for text in texts], dtype=np.float64
        )
        ranks[sorted(end_tokens)] = 1e6
        return ranks

    def allowed(self, matcher: LLMatcher) -> Mask:
        """Return which tokens may follow, ``[vocabulary]``."""
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(bits, count=len(self._orders[0]), bitorder="little").view(np.bool_)

    def is_text(self, allowed: Mask) -> bool:
        """Tell whether this is free text, or a string that may end: a tilde or a quote may come."""
        if self._probe is None or self._quote is None:
            return False
        return bool(allowed[self._probe] and allowed[self._quote])

    def shortest(self, matcher: LLMatcher, limit: int) -> list[int] | None:
        """Return tokens that lead to the end; None if no way of at most ``limit`` is found."""
        best: list[int] | None = None
        for order in self._orders:
            way = self._follow(matcher, limit if best is None else len(best) - 1, order)
            best = way if way is not None else best
            if best is not None and len(best) <= _MARGIN:
                break
        return best

    def _follow(self, matcher: LLMatcher, limit: int, order: Any) -> list[int] | None:
        state = matcher.deep_copy()
        way: list[int] = []
        before, same = b"", 0
        while not state.is_accepting():
            step = list(state.compute_ff_tokens())
            if not step:
                allowed = self.allowed(state)
                seen = allowed.tobytes()
                same = same + 1 if seen == before else 0
                before = seen
                if same > _HOPELESS:
                    return None
                if same == _STALLED:
                    step = self._way_on(state, allowed)
                step = step or [self._next(allowed, order)]
            if len(way) + len(step) > limit or not state.consume_tokens(step):
                return None
            way += step
        return way

    def _next(self, allowed: Mask, order: Any) -> int:
        if self.is_text(allowed):  # in a string; a brace would not close anything
            assert self._quote is not None
            return int(self._quote)
        return int(np.where(allowed, order, np.inf).argmin())

    def _way_on(self, state: LLMatcher, allowed: Mask) -> list[int]:
        """Find a few characters after which something may end that may not end now, or changes."""
        changing: list[int] = []
        for token in self._singles:
            if not allowed[token]:
                continue
            for tail in self._tails:
                after = state.deep_copy()
                if not after.consume_tokens([token, *tail]):
                    continue
                if after.is_accepting():
                    return [token, *tail]
                then = self.allowed(after)
                if any(then[ender] and not allowed[ender] for ender in self._enders):
                    return [token, *tail]
                if not changing and not tail and (then != allowed).any():
                    changing = [token]
        return changing
