"""Keys and values of recent prompts, so that those which begin alike are not read again."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Sequence
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
        """Refer to a segment at a temperature."""
        return cls(weakref.ref(segment), len(segment), temperature)


PromptItem = int | Injected
"""A token, or a segment."""


def count_slots(items: Sequence[PromptItem]) -> int:
    """Return the number of cache slots that items of a prompt take."""
    return sum(item.length if isinstance(item, Injected) else 1 for item in items)


PUBLIC: None = None
"""The salt of what everybody may reuse."""
SEPARATOR = "|"
"""Between the salts of what belongs to two: it is forgotten with either."""


@dataclass(frozen=True)
class _Entry:
    salt: str | None
    items: tuple[PromptItem, ...]
    layers: list[LayerKV]
    nbytes: int
    watched: list[weakref.ref[Segment]]


class PrefixCache:
    """Keys and values of recent prompts, by what was read; the least recently used go first.

    What was read under one salt is only found under the same one: else whoever shares a model could
    tell by the time, or by the tokens reused, what others had read. What is public is found under
    each.

    Nothing is copied in. An entry goes with the first of its segments: when a log is deleted, the
    segment cache lets go of its segment, and nothing of it stays here.

    Thread safe.

    Args:
        max_bytes: Most bytes to hold; what is larger is not held at all.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._numbers = count()
        self._cleared: dict[str, int] = {}
        self.begin_anew()
        # Segments go on any thread, at any time, also while this one holds the lock: what their
        # callbacks do is atomic, and the entries go when the cache is used next.
        self._dead: deque[int] = deque()

    def begin_anew(self) -> None:
        """Drop everything, and a lock that a thread of another process holds."""
        self._lock = threading.RLock()
        self._entries: OrderedDict[int, _Entry] = OrderedDict()

    def __len__(self) -> int:
        with self._lock:
            self._drop_dead()
            return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        with self._lock:
            self._drop_dead()
            return sum(entry.nbytes for entry in self._entries.values())

    def fork(
        self, items: Sequence[PromptItem], more: int = 0, *, salt: str = ""
    ) -> tuple[DynamicCache, int]:
        """Make a cache that holds the longest known prefix of a prompt.

        The last item is always left to read: the logits after it are wanted.

        Args:
            items: The prompt.
            more: Tokens for which the cache shall have room after it.
            salt: Whose prompt it is.

        Returns:
            The cache, and how many of the items it holds.
        """
        with self._lock:
            known, number, entry = self._longest(items, salt)
            layers: Sequence[LayerKV] = ()
            if entry is not None:
                self._entries.move_to_end(number)
                layers = first_tokens(entry.layers, count_slots(items[:known]))
        room = count_slots(items) + more
        with_segments = any(isinstance(item, Injected) for item in items[known:])
        return new_cache(layers, room, with_segments=with_segments), known

    def match_length(self, items: Sequence[PromptItem], *, salt: str = "") -> tuple[int, int]:
        """Return how many of the items `fork` would find, and the number of the entry it uses."""
        with self._lock:
            return self._longest(items, salt)[:2]

    def _longest(self, items: Sequence[PromptItem], salt: str) -> tuple[int, int, _Entry | None]:
        """Return the length of the longest known prefix, and the entry that has it."""
        self._drop_dead()
        known, number, best = 0, 0, None
        for other, entry in reversed(self._entries.items()):
            if entry.salt not in (salt, PUBLIC):
                continue
            common = _common_length(entry.items, items[:-1])
            if common > known:
                known, number, best = common, other, entry
        return known, number, best

    def moment(self) -> int:
        """Return a number that is above those of all that was cleared so far."""
        return next(self._numbers)

    def insert(
        self,
        items: Sequence[PromptItem],
        cache: DynamicCache,
        *,
        salt: str | None = "",
        since: int | None = None,
    ) -> None:
        """Keep what a cache holds.

        Args:
            items: What was read into it: all of it.
            cache: The cache; its tensors are kept.
            salt: Whose it is; `PUBLIC` for what everybody may reuse.
            since: The `moment` when it was begun: what was cleared meanwhile is not put back.
        """
        items, layers = tuple(items), read_layers(cache)
        size = nbytes(layers)
        if not items or size > self.max_bytes:
            return
        with self._lock:
            self._drop_dead()
            if salt is not None and since is not None and self._was_cleared(salt, since):
                return
            if self._supersedes(items, salt):
                self._add(_Entry(salt, items, layers, size, []))

    def _supersedes(self, items: tuple[PromptItem, ...], salt: str | None) -> bool:
        """Drop entries that a new one continues; return False if an entry holds all of it."""
        for number, entry in list(self._entries.items()):
            if entry.salt != salt:
                continue
            common = _common_length(entry.items, items)
            if common == len(items):
                self._entries.move_to_end(number)
                return False
            if common == len(entry.items):
                if any(isinstance(item, Injected) for item in items[common:]):
                    self._entries.move_to_end(number)  # the longer one goes with its segments
                else:
                    del self._entries[number]
        return True

    def _add(self, entry: _Entry) -> None:
        number, dead = next(self._numbers), self._dead
        for item in entry.items:
            if isinstance(item, Injected) and (segment := item.segment()) is not None:
                entry.watched.append(weakref.ref(segment, lambda _: dead.append(number)))
        self._entries[number] = entry
        while self.nbytes > self.max_bytes or len(self._entries) > _MOST:
            self._entries.popitem(last=False)

    def _was_cleared(self, salt: str, since: int) -> bool:
        return any(
            moment > since and _is_within(salt, cleared)
            for cleared, moment in self._cleared.items()
        )

    def _drop_dead(self) -> None:
        while self._dead:
            self._entries.pop(self._dead.popleft(), None)

    def has_public(self, items: Sequence[PromptItem]) -> bool:
        """Return whether a public entry holds all of a prefix."""
        with self._lock:
            self._drop_dead()
            return any(
                entry.salt is PUBLIC and _common_length(entry.items, items) == len(items)
                for entry in self._entries.values()
            )

    def clear_salt(self, salt: str) -> None:
        """Drop all that was read under a salt, or one that begins with it and a colon.

        Of salts that are joined by `SEPARATOR`, one is enough.
        """
        with self._lock:
            self._cleared[salt] = next(self._numbers)
            for number, entry in list(self._entries.items()):
                if entry.salt is not None and _is_within(entry.salt, salt):
                    del self._entries[number]

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._entries.clear()


def _is_within(salt: str, outer: str) -> bool:
    return any(one == outer or one.startswith(f"{outer}:") for one in salt.split(SEPARATOR))


def _common_length(one: Sequence[PromptItem], other: Sequence[PromptItem]) -> int:
    for place, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return place
    return min(len(one), len(other))
