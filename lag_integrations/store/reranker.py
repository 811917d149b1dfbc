"""Reranking of the logs that a search found, by a cross-encoder that reads query and log."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lag_integrations.errors import StoreError
from lag_integrations.runtime.loading_lock import loading
from lag_integrations.runtime.own_thread import in_own_thread

logger = logging.getLogger(__name__)

Scores = NDArray[np.float64]
_Function = Callable[[list[tuple[str, str]]], Any]
_MAX_CHARACTERS = 4_000
"""Of a log; cross-encoders cut pairs at some 512 tokens."""


class Reranker:
    """Scores how well texts answer a query.

    Args:
        source: Name or folder of a sentence-transformers ``CrossEncoder``, a loaded one, or any
            function from a list of (query, text) to a list of scores. A name or folder is loaded
            when it is first needed.

    Raises:
        StoreError: The source is none of these.
    """

    def __init__(self, source: Any) -> None:
        self.name = str(source) if isinstance(source, str | Path) else type(source).__name__
        self._source = source
        self._function = None if isinstance(source, str | Path) else _function_of(source)
        self._lock = threading.Lock()
        self._is_missing = False

    def order(self, query: str, texts: Sequence[str]) -> list[int]:
        """Return the positions of the texts, the best first.

        If the reranker fails, the order stays as it is, and a warning is logged: an answer is worth
        more than the order of its logs.

        Args:
            query: The query.
            texts: Texts that may answer it.
        """
        places = list(range(len(texts)))
        if len(texts) < 2 or self._is_missing:
            return places
        try:
            scores = self._scores([(query, text[:_MAX_CHARACTERS]) for text in texts])
        except Exception as error:
            self._is_missing = self._function is None
            # The name only: others' messages may repeat the text.
            logger.warning(
                "The reranker %r does not work (%s); logs stay in the order of their relevance.",
                self.name,
                error if isinstance(error, StoreError) else type(error).__name__,
            )
            return places
        return sorted(places, key=lambda place: -scores[place])

    def _scores(self, pairs: list[tuple[str, str]]) -> Scores:
        with self._lock:  # one at a time, and loaded once
            if self._function is None:
                self._function = _function_of(_load(self._source))
            score = self._function
            scores = np.asarray(in_own_thread(lambda: score(pairs)), dtype=np.float64)
        if scores.shape != (len(pairs),) or not np.isfinite(scores).all():
            raise StoreError(f"it gave no finite score for each of {len(pairs)} texts")
        return scores


def _load(source: str | Path) -> Any:
    from sentence_transformers import CrossEncoder

    try:
        with loading(source):
            return CrossEncoder(str(source))
    except (OSError, ValueError) as error:
        raise StoreError(f"it cannot be loaded: {error}") from error


def _function_of(source: Any) -> _Function:
    if hasattr(source, "predict"):  # sentence-transformers
        return partial(source.predict, show_progress_bar=False)
    if callable(source):
        return partial(source)
    raise StoreError(
        f"A {type(source).__name__} cannot be used as a reranker. Pass the name of a "
        "sentence-transformers CrossEncoder, or a function from (query, text) pairs to scores."
    )
