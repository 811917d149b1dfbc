"""Calibration of an embedder's relevance model on a built-in set of requests and runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from lag_integrations.store.embedder import Embedder, Vectors
from lag_integrations.store.lexical import shared_words
from lag_integrations.store.relevance.model import Relevance

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

_SAME = 0.999
"""Least cosine similarity of two embeddings of one sentence by the same embedder."""
_NEAR_WEIGHT = 0.1
"""Weight of requests that are close to a run but not helped by it. They are assumed to be rare,
since no embedder tells them well from those that are helped."""
_RIDGE = 0.1
_STEPS = 50
_MIN_ACCURACY = 0.75
"""Part of the requests whose own run has to be the nearest, else a warning is logged."""


class Pair(BaseModel):
    """A run, with a request that it helps and one that it does not.

    Attributes:
        task: Task of the run.
        response: Response of the run.
        same: The same request in other words.
        near: Another request that is close to it.
    """

    task: str
    response: str
    same: str
    near: str


@cache
def pairs() -> tuple[Pair, ...]:
    """Return the built-in set: 60 runs, 12 of them not in English."""
    text = files(__package__).joinpath("pairs.jsonl").read_text("utf-8")
    return tuple(Pair.model_validate_json(line) for line in text.splitlines())


class _Known(BaseModel):
    """A known embedder: its embedding of the probe sentence, and its relevance."""

    embedder: str
    probe: tuple[float, ...]
    relevance: tuple[float, float, float]


_measured: list[tuple[Vectors, Relevance]] = []
"""Embedders that were measured in this process."""


def relevance_of(embedder: Embedder, probe: Vectors) -> Relevance:
    """Return an embedder's relevance model, which is measured once a process unless it is known.

    Args:
        embedder: The embedder.
        probe: Its embedding of the probe sentence, fp32 ``[dimension]``, which identifies it.
    """
    known = ((np.asarray(one.probe), Relevance(*one.relevance)) for one in _known())
    for vector, relevance in (*known, *_measured):
        if vector.shape == probe.shape and float(vector @ probe) >= _SAME:
            return relevance
    measured = measure(embedder)
    _measured.append((probe, measured))
    return measured


@cache
def _known() -> tuple[_Known, ...]:
    text = files(__package__).joinpath("known.jsonl").read_text("utf-8")
    return tuple(_Known.model_validate_json(line) for line in text.splitlines())


def measure(embedder: Embedder, *, words: bool = True) -> Relevance:
    """Fit the relevance model of an embedder.

    Positive examples are requests with the run of the same request in other words. Negative ones
    are requests with the nearest other run, which recall would return without their own, and close
    requests with the run that they are close to.

    Args:
        embedder: The embedder.
        words: Whether shared words count; else only similarity does.
    """
    runs = pairs()
    texts = [f"{pair.task}\n{pair.response}" for pair in runs]
    tasks, whole = embedder.embed([pair.task for pair in runs]), embedder.embed(texts)

    def features(requests: Sequence[str]) -> Floats:
        queries = embedder.embed_queries(requests)
        similarity = np.maximum(queries @ tasks.T, queries @ whole.T)
        shared = shared_words(requests, texts) * words
        return np.stack([similarity, shared / (shared + 1.0)], axis=-1, dtype=np.float64)

    same = features([pair.same for pair in runs])
    near = features([pair.near for pair in runs])
    rows = list(_examples(same, near))
    weights = _fit(
        np.array([row for row, _, _ in rows]),
        np.array([fits for _, fits, _ in rows]),
        np.array([weight for _, _, weight in rows]),
    )
    found = float((same[..., 0].argmax(1) == np.arange(len(runs))).mean())
    if found < _MIN_ACCURACY:
        logger.warning(
            "The embedder finds only %d %% of the built-in runs by requests in other words; with "
            "it, little that fits will be recalled.",
            round(100 * found),
        )
    return Relevance(*(round(float(weight), 3) for weight in weights))


def _examples(same: Floats, near: Floats) -> Iterator[tuple[Floats, float, float]]:
    """Yield examples: features, label and weight."""
    for number in range(len(same)):
        yield same[number, number], 1.0, 1.0
        yield near[number, number], 0.0, _NEAR_WEIGHT
        for request in (same[number], near[number]):
            others = request[:, 0].copy()
            others[number] = -1.0
            yield request[others.argmax()], 0.0, 0.5


def _fit(features: Floats, fits: Floats, weights: Floats) -> Floats:
    """Fit a logistic regression by Newton's method, ``[bias, *weights]``, no weight below 0.

    The ridge applies to standardised features, since similarities of some embedders hardly differ.
    """
    middle = np.average(features, axis=0, weights=weights)
    spread = np.maximum(
        np.sqrt(np.average((features - middle) ** 2, axis=0, weights=weights)), 1e-6
    )
    scaled = (features - middle) / spread
    used = list(range(features.shape[1]))
    while True:
        columns = np.column_stack([np.ones(len(scaled)), scaled[:, used]])
        ridge = _RIDGE * np.diag([0.0] + [1.0] * len(used))
        found = np.zeros(columns.shape[1])
        for _ in range(_STEPS):
            chance = 1.0 / (1.0 + np.exp(-columns @ found))
            curvature = (columns * (weights * chance * (1 - chance))[:, None]).T @ columns + ridge
            slope = columns.T @ (weights * (fits - chance)) - ridge @ found
            found += np.linalg.solve(curvature, slope)
        if (found[1:] >= 0).all():
            break
        used = [place for place, weight in zip(used, found[1:], strict=True) if weight >= 0]
    slopes = np.zeros(features.shape[1])
    slopes[used] = found[1:] / spread[used]
    return np.array([found[0] - slopes @ middle, *slopes])
