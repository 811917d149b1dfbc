"""Groups of runs that one lesson is made of: runs of alike tasks, which the same may read."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lag_integrations.store.embedder import Vectors
from lag_integrations.store.lessons import Lesson

MAX_SOURCES = 8
"""Most runs that a lesson is made of."""
_MIN_SOURCES = 2
_GROWTH = 0.5
"""New runs, as a part of those that a lesson was made of, after which it is made anew: so that a
kind of task that comes daily does not cost a lesson daily."""


@dataclass(frozen=True)
class Run:
    """A run as far as it is grouped.

    Attributes:
        id: Id of its log.
        task: The embedding of its task, fp32 ``[dimension]``, of norm 1.
        readers: Who may read it: only runs with equal ones come together.
        captured_at: In Unix seconds.
        failed: Whether it failed.
    """

    id: str
    task: Vectors
    readers: Hashable
    captured_at: float
    failed: bool


@dataclass
class Group:
    """Runs of alike tasks.

    Attributes:
        runs: The runs; those that a lesson was made of come first.
        lesson: The lesson that there is of them.
    """

    runs: list[Run] = field(default_factory=list)
    lesson: Lesson | None = None

    @property
    def is_due(self) -> bool:
        """Whether a lesson is to be made of it, for the first time or anew."""
        if len(self.runs) < _MIN_SOURCES:
            return False
        if self.lesson is None:
            return True
        sources, made_at = set(self.lesson.sources), self.lesson.made_at
        if not sources <= {run.id for run in self.runs}:
            return True
        new = [run for run in self.runs if run.id not in sources and run.captured_at > made_at]
        return len(new) >= _GROWTH * len(sources)

    @property
    def is_void(self) -> bool:
        """Whether its lesson is to go: a source may not be read any more, and too few are left."""
        if self.lesson is None or len(self.runs) >= _MIN_SOURCES:
            return False
        return not {run.id for run in self.runs}.issuperset(self.lesson.sources)

    @property
    def sources(self) -> list[Run]:
        """The runs that a lesson is made of, oldest first: the newest, failures half at most.

        Where there are too few of one kind, the other takes its place.
        """
        newest = sorted(self.runs, key=lambda run: (-run.captured_at, run.id))
        failed = [run for run in newest if run.failed]
        others = [run for run in newest if not run.failed]
        number = min(len(failed), max(MAX_SOURCES // 2, MAX_SOURCES - len(others)))
        chosen = [*failed[:number], *others[: MAX_SOURCES - number]]
        return sorted(chosen, key=lambda run: (run.captured_at, run.id))


def grouped(runs: Iterable[Run], lessons: Sequence[Lesson], least_similarity: float) -> list[Group]:
    """Group runs: each joins the group whose tasks are the most alike, or begins one of its own.

    Groups that have a lesson stay what they are, so that what was made once is not made again.

    Args:
        runs: The runs.
        lessons: The lessons that there are.
        least_similarity: Least mean cosine similarity of a run's task to those of its group.
    """
    by_id = {run.id: run for run in runs}
    by_readers: dict[Hashable, _Clusters] = {}
    taken: set[str] = set()
    groups: list[Group] = []
    for lesson in lessons:
        members = [by_id[key] for key in lesson.sources if key in by_id and key not in taken]
        members = [run for run in members if run.readers == members[0].readers]
        taken.update(run.id for run in members)
        group = Group(members, lesson)
        groups.append(group)
        if members:
            clusters = by_readers.setdefault(members[0].readers, _Clusters(least_similarity))
            clusters.begin(group)
    left = [run for run in by_id.values() if run.id not in taken]
    for run in sorted(left, key=lambda run: (run.captured_at, run.id)):
        clusters = by_readers.setdefault(run.readers, _Clusters(least_similarity))
        if (nearest := clusters.nearest(run)) is not None:
            clusters.join(run, nearest)
            continue
        alone = Group([run])
        groups.append(alone)
        clusters.begin(alone)
    return groups


class _Clusters:
    """Groups of runs with the same readers, and the sums of their tasks' embeddings.

    The mean cosine similarity to unit vectors is the product with their mean.
    """

    def __init__(self, least_similarity: float) -> None:
        self._least = least_similarity
        self._groups: list[Group] = []
        self._sums: Vectors = np.zeros((0, 0), dtype=np.float32)

    def begin(self, group: Group) -> None:
        """Add a group."""
        place, total = len(self._groups), np.sum([run.task for run in group.runs], axis=0)
        if place >= len(self._sums):  # grows by half, not row by row
            wider = np.zeros((place + place // 2 + 8, len(total)), dtype=np.float32)
            wider[: len(self._sums)] = self._sums.reshape(-1, len(total))
            self._sums = wider
        self._sums[place] = total
        self._groups.append(group)

    def nearest(self, run: Run) -> Group | None:
        """Return the group whose tasks are the most alike, if they are alike enough."""
        if not self._groups:
            return None
        sizes = np.array([len(group.runs) for group in self._groups])
        similarity = self._sums[: len(sizes)] @ run.task / sizes
        best = int(similarity.argmax())
        return self._groups[best] if similarity[best] >= self._least else None

    def join(self, run: Run, group: Group) -> None:
        """Add a run to a group."""
        place = next(place for place, one in enumerate(self._groups) if one is group)
        self._sums[place] += run.task
        group.runs.append(run)
