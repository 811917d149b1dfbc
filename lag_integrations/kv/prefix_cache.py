"""What the model read lately, so that prompts which begin alike are not read again."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

from transformers import DynamicCache

from lag_integrations.kv.cache import LayerKV, first_tokens, nbytes, new_cache, read_layers
from lag_integrations.kv.segment import Segment

_MOST = 32
"""Entries: each is compared with each prompt."""


@dataclass(frozen=True)
class Injected:
    """A segment among the tokens of a prompt; equal only if it is the very same object.

    Attributes:
        segment: The segment.
        length: Its tokens.
        temperature: Of the attention to it.
    """

    segment: weakref.ref[Segment]
    length: int
    temperature: float

    @classmethod
    def of(cls, segment: Segment, temperature: float) -> Injected:
        """A segment at a temperature."""
        return cls(weakref.ref(segment), len(segment), temperature)


PromptItem = int | Injected
"""A token, or a segment."""


def length_of(pieces: Sequence[PromptItem]) -> int:
    """Number of cache slots that pieces take."""
    return sum(piece.length if isinstance(piece, Injected) else 1 for piece in pieces)


PUBLIC: None = None
"""The salt of what everybody may reuse."""


@dataclass(frozen=True)
class _Entry:
    salt: str | None
    pieces: tuple[PromptItem, ...]
    layers: list[LayerKV]
    nbytes: int
    watched: list[weakref.ref[Segment]]


class PrefixCache:
    """Keys and values of what was read lately, by what was read; the oldest go first.

    What was read under one salt is only found under the same one: else whoever shares a model could
    tell by the time, or by the tokens reused, what others had read. What is public is found under
    each.

    Nothing is copied in. An entry goes with the first of its segments: when a log is deleted,
    the hot tier lets go of its segment, and nothing of it stays here.

    Not thread safe, except for that.

    Args:
        max_bytes: Most bytes to hold; what is larger is not held at all.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._numbers = count()
        self._forgotten: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(entry.nbytes for entry in list(self._entries.values()))

    def fork(
        self, pieces: Sequence[PromptItem], more: int = 0, *, salt: str = ""
    ) -> tuple[DynamicCache, int]:
        """A cache with the longest beginning of a prompt that is known, but not all of it.

        The last piece is always left to read: the logits after it are wanted.

        Args:
            pieces: The prompt.
            more: Tokens for which the cache shall have room after it.
            salt: Whose prompt it is.

        Returns:
            The cache, and how many of the pieces it holds.
        """
        known, number, entry = self._longest(pieces, salt)
        room = length_of(pieces) + more
        with_segments = any(isinstance(piece, Injected) for piece in pieces[known:])
        layers: Sequence[LayerKV] = ()
        if entry is not None:
            self._touch(number)
            layers = first_tokens(entry.layers, length_of(pieces[:known]))
        return new_cache(layers, room, with_segments=with_segments), known

    def match_length(self, pieces: Sequence[PromptItem], *, salt: str = "") -> tuple[int, int]:
        """How many of the pieces `fork` would find, and the number of the entry it would use."""
        return self._longest(pieces, salt)[:2]

    def _longest(self, pieces: Sequence[PromptItem], salt: str) -> tuple[int, int, _Entry | None]:
        """The longest beginning that is known, and the entry that has it."""
        known, number, best = 0, 0, None
        for other, entry in reversed(list(self._entries.items())):
            if entry.salt not in (salt, PUBLIC):
                continue
            common = _common(entry.pieces, pieces[:-1])
            if common > known:
                known, number, best = common, other, entry
        return known, number, best

    def moment(self) -> int:
        """Return a number that is above those of all that was forgotten so far."""
        return next(self._numbers)

    def insert(
        self,
        pieces: Sequence[PromptItem],
        cache: DynamicCache,
        *,
        salt: str | None = "",
        since: int | None = None,
    ) -> None:
        """Remember what a cache holds.

        Args:
            pieces: What was read into it: all of it.
            cache: The cache; its tensors are kept.
            salt: Whose it is; `PUBLIC` for what everybody may reuse.
            since: The `moment` when it was begun: what was forgotten meanwhile is not put back.
        """
        pieces, layers = tuple(pieces), read_layers(cache)
        size = nbytes(layers)
        if not pieces or size > self.max_bytes:
            return
        for other, entry in list(self._entries.items()):
            if entry.salt != salt:
                continue
            common = _common(entry.pieces, pieces)
            if common == len(pieces):
                self._touch(other)  # known, and more
                return
            if common == len(entry.pieces):
                if any(isinstance(piece, Injected) for piece in pieces[common:]):
                    self._touch(other)  # the longer one goes with its segments
                else:
                    self._entries.pop(other, None)
        number, entries = next(self._numbers), self._entries
        watched = [
            weakref.ref(segment, lambda _: entries.pop(number, None))
            for piece in pieces
            if isinstance(piece, Injected) and (segment := piece.segment()) is not None
        ]
        entries[number] = _Entry(salt, pieces, layers, size, watched)
        while self.nbytes > self.max_bytes or len(entries) > _MOST:
            with suppress(KeyError):
                entries.popitem(last=False)
        # Only now, since another thread may forget at any time.
        if salt is not None and since is not None and self._was_forgotten(salt, since):
            entries.pop(number, None)

    def _was_forgotten(self, salt: str, since: int) -> bool:
        return any(
            moment > since and _is_within(salt, forgotten)
            for forgotten, moment in list(self._forgotten.items())
        )

    def _touch(self, number: int) -> None:
        with suppress(KeyError):  # it went with its segment meanwhile, on another thread
            self._entries.move_to_end(number)

    def holds(self, pieces: Sequence[PromptItem]) -> bool:
        """Return whether all of a beginning is known, and public."""
        return any(
            entry.salt is PUBLIC and _common(entry.pieces, pieces) == len(pieces)
            for entry in list(self._entries.values())
        )

    def forget(self, salt: str) -> None:
        """Let go of all that was read under a salt, or one that begins with it and a colon.

        May be called from any thread.
        """
        self._forgotten[salt] = next(self._numbers)
        for number, entry in list(self._entries.items()):
            if entry.salt is not None and _is_within(entry.salt, salt):
                self._entries.pop(number, None)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()


def _is_within(salt: str, outer: str) -> bool:
    return salt == outer or salt.startswith(f"{outer}:")


def _common(one: Sequence[PromptItem], other: Sequence[PromptItem]) -> int:
    """Length of the common beginning."""
    for place, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return place
    return min(len(one), len(other))
