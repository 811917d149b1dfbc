"""Which questions are seen: as published, or by chance."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from lag_integrations.evaluation.datasets.files import Folder
from lag_integrations.evaluation.questions import Question

Item = TypeVar("Item")
Split = tuple[tuple[Question, ...], tuple[Question, ...]]
"""Seen and unseen questions."""

_SEEN = 0.7


def shuffled(items: Sequence[Item], seed: int) -> list[Item]:
    """Return the items in an order that the seed decides."""
    items = list(items)
    random.Random(seed).shuffle(items)
    return items


def split(items: Sequence[Item], seed: int) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Split shuffled questions, or tasks: the first 70 % are seen."""
    items = tuple(shuffled(items, seed))
    seen = round(_SEEN * len(items))
    return items[:seen], items[seen:]


def train_and_test(
    folder: Folder,
    read: Callable[[Path], list[Question]],
    seed: int,
    unsplit: Sequence[str] = (),
) -> Split:
    """Return the published split: the train file is seen. Without a test file, `split`.

    Args:
        folder: The folder of the dataset.
        read: Reads the questions of a file.
        seed: For `split`.
        unsplit: Other files to take if there is no train file.

    Raises:
        EvaluationError: There is no such file, or it cannot be read.
    """
    test = folder.find("dev_test.json", "test.json")
    if test is None:
        return split(read(folder.file("dev_train.json", "train.json", *unsplit)), seed)
    return tuple(read(folder.file("dev_train.json", "train.json"))), tuple(read(test))
