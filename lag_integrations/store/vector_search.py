"""Vector search in the Chroma index and, for embeddings not merged yet, in the ledger."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement

from lag_integrations.errors import BusyError, EmbedderMismatchError, ForkedError, StoreError
from lag_integrations.store.embedder import Vectors
from lag_integrations.store.embeddings import EmbeddingTable, Entry
from lag_integrations.store.index import Index
from lag_integrations.store.ledger import Ledger
from lag_integrations.store.locks import retry_while_busy

logger = logging.getLogger(__name__)

MERGE_AT = 256
"""Embeddings that are merged into Chroma at once, since other processes open it again after each
merge. Until then they are searched in the ledger, exactly."""
_MERGE_STEP = 512
_KEYS, _KEYS_FILTERED = 8, 64
"""Search keys that the index is asked for, for each wanted log: a log has several."""
_NO_INDEX = "none"
"""Replaces the `Index.identity` while the index cannot be used, as if it were empty."""
_MAX_SCAN = 4_000
"""Most allowed logs that are all compared when the index returned too few."""


class VectorSearch:
    """Searches the embeddings of one namespace, and merges them into the index.

    Args:
        ledger: The logs.
        embeddings: All their embeddings.
        index: The index, which has most of them.
        hold: Holds a lock of the namespace, by its name.
    """

    def __init__(
        self,
        ledger: Ledger,
        embeddings: EmbeddingTable,
        index: Index,
        hold: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self._ledger = ledger
        self._embeddings = embeddings
        self._index = index
        self._hold = hold
        self._identity = ""  # of the index, as last seen
        self._index_failed = False
        self._out_of_reach = False  # in use for long, or not for this process

    def nearest(
        self,
        vector: Vectors,
        *,
        logs: int,
        floor: float,
        allowed: ColumnElement[bool],
        filtered: bool,
    ) -> dict[str, tuple[float, int]]:
        """Return logs with the cosine similarity and the number of their nearest key.

        Args:
            vector: The query, fp32 ``[dimension]``.
            logs: Number of wanted logs. The nearest ones are among those returned.
            floor: Least similarity.
            allowed: The condition under which logs may be recalled.
            filtered: Whether the condition may exclude most logs.

        Raises:
            EmbedderMismatchError: The vector is of another dimension.
            StoreError: The store fails.
        """
        while True:
            identity = self._identity or self._current_index()
            # In this order: what is merged in between is then seen twice, not missed.
            near = _scores(*self._embeddings.vectors(allowed, outside=identity), vector)
            if self._embeddings.count(inside=identity, limit=1):
                found = self._search_index(vector, logs, floor, allowed, filtered=filtered)
                if found is None:  # compare with everything
                    near = _scores(*self._embeddings.vectors(allowed), vector)
                else:
                    near = {**found, **near}
            if identity == _NO_INDEX or self._identity in (identity, ""):
                break  # else it was made again by another process meanwhile
        return _best_keys({entry: score for entry, score in near.items() if score >= floor})

    def similarities(self, ids: Sequence[str], vector: Vectors) -> dict[str, tuple[float, int]]:
        """Return the same as `nearest` for given logs, whatever their similarity."""
        return _best_keys(_scores(*self._embeddings.vectors(ids=ids), vector))

    def _search_index(
        self,
        vector: Vectors,
        logs: int,
        floor: float,
        allowed: ColumnElement[bool],
        *,
        filtered: bool,
    ) -> dict[Entry, float] | None:
        """Return the nearest allowed entries of the index, or all of few; None if it fails."""
        wanted = (_KEYS_FILTERED if filtered else _KEYS) * logs + 16
        while True:
            try:
                before = self._identity
                self._identity, found = self._index.search(vector, wanted)
                self._out_of_reach = False
                if self._identity != before:
                    return {}  # the caller begins anew
                if not found:
                    raise StoreError("The Chroma index finds nothing, although it should.")
            except StoreError as error:
                self._note_failure(error)
                return None
            good = {entry: score for entry, score in found if score >= floor}
            kept = self._ledger.filter_ids(list({log_id for log_id, _ in good}), allowed)
            if len(kept) >= logs or len(found) < wanted or found[-1][1] < floor:
                return {entry: score for entry, score in good.items() if entry[0] in kept}
            few = self._ledger.some_ids(allowed, limit=_MAX_SCAN + 1)
            if len(few) <= _MAX_SCAN:
                # By their ids: the condition, asked of each embedding, would read the whole table.
                return _scores(*self._embeddings.vectors(ids=few), vector)
            wanted *= 8

    def _current_index(self) -> str:
        try:
            self._identity = self._index.identity()
        except StoreError as error:
            self._note_failure(error)
            return _NO_INDEX
        return self._identity

    def _note_failure(self, error: StoreError) -> None:
        if not (self._index_failed or self._out_of_reach):
            logger.warning("%s Meanwhile, all embeddings are compared.", error)
        if isinstance(error, BusyError | ForkedError):  # no fault of the index
            self._out_of_reach = True
        else:
            self._index_failed = True
            self._identity = ""

    def merge(self, at_least: int = 1) -> bool:
        """Merge embeddings into the index, if enough wait; return whether there is more to do.

        A process that cannot use the index leaves this to others.

        Args:
            at_least: Embeddings that have to wait.

        Raises:
            BusyError: Others use the index; nothing was done.
            StoreError: The index does not work, not even after a reset.
        """
        if self._index_failed:
            at_least = 0  # see whether it works again
        elif self._embeddings.count(outside=self._identity, limit=at_least) < at_least:
            return False
        with self._hold("merge"):
            try:
                self._identity = self._index.identity()
                if self._index_failed:
                    self._probe_index()
                return self._merge_some(at_least)
            except BusyError:
                raise
            except ForkedError as error:
                self._note_failure(error)
                return False
            except StoreError as error:
                self._note_failure(error)
                self._index.reset()
                self._identity = self._index.identity()
                return self._merge_some(at_least)

    def remove(self, log_ids: Sequence[str]) -> None:
        """Remove logs from the index, while the lock ``merge`` is held.

        Raises:
            BusyError: Others use the index.
            ForkedError: This process cannot use it.
            StoreError: It does not work; the next `merge` repairs it.
        """
        try:
            self._index.remove(log_ids)
        except StoreError as error:
            self._note_failure(error)
            raise

    def _probe_index(self) -> None:
        """Refuse an index that still does not find its entries."""
        entries, vectors = self._embeddings.vectors(inside=self._identity, limit=1)
        if entries and not self._index.search(vectors[0], 1)[1]:
            raise StoreError("The Chroma index finds nothing, although it should.")

    def _merge_some(self, at_least: int) -> bool:
        entries, vectors = self._embeddings.vectors(outside=self._identity, limit=_MERGE_STEP)
        if entries and len(entries) >= at_least:
            if not self._embeddings.count(inside=self._identity, limit=1):
                self._index.drop_older()
            self._embeddings.mark_indexed(entries, self._index.add(entries, vectors))
        self._index_failed = False
        return bool(entries)

    def rebuild(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Rebuild the index from the embeddings in the ledger.

        Raises:
            BusyError: Others have used the index for a minute.
        """
        retry_while_busy(self._empty_index)
        total = self._embeddings.count(outside=self._identity)
        while retry_while_busy(self.merge):
            if progress is not None:
                left = self._embeddings.count(outside=self._identity)
                progress(max(0, total - left), total)

    def _empty_index(self) -> None:
        with self._hold("merge"):
            self._index.reset()
            self._index.rewrite()
            self._identity = self._index.identity()

    def drop(self) -> None:
        """Remove the index of the namespace."""
        with self._hold("merge"):
            self._index.drop()
        self._identity = ""


def _scores(entries: Sequence[Entry], held: Vectors, vector: Vectors) -> dict[Entry, float]:
    if not len(entries):
        return {}
    if held.shape[1] != len(vector):
        raise EmbedderMismatchError(
            f"The query has {len(vector)} dimensions, the store's embeddings "
            f"{held.shape[1]}. Open the store with the embedder that it was built with, or "
            "`kvlog reindex` it."
        )
    scores: Any = np.asarray(held) @ vector
    return dict(zip(entries, scores.tolist(), strict=True))


def _best_keys(near: Mapping[Entry, float]) -> dict[str, tuple[float, int]]:
    """Return logs with the similarity and the number of their best keys."""
    best: dict[str, tuple[float, int]] = {}
    for (log_id, key), score in near.items():
        known = best.get(log_id)
        if known is None or (score, -key) > (known[0], -known[1]):
            best[log_id] = (score, key)
    return best
