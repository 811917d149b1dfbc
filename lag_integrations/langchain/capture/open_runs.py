"""The runs that go on: which root run each belongs to, and when a root run is over."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from lag_integrations.langchain.capture.messages import task_of
from lag_integrations.langchain.capture.run import Run

try:
    from langgraph.errors import GraphBubbleUp
except ImportError:

    class GraphBubbleUp(Exception):  # type: ignore[no-redef]
        """Never raised without LangGraph."""


_MAX_OPEN = 1_000
"""Most root runs that go on at once."""
_MAX_AGE = 24 * 3600.0
"""Seconds after its last event until a root run is given up."""
_LINGER = 60.0
"""Seconds that an abandoned stream gets for its model's last words."""
_MAX_ORPHANS = 10_000
"""Most remembered runs whose root ended before them."""


@dataclass(frozen=True)
class _Node:
    """A run of the tree: its root, and the thread it was started in."""

    root: Run
    thread: str | None


class OpenRuns:
    """The root runs that go on, and the runs within them.

    Callers hold the lock while they call a method or use a run.

    Attributes:
        lock: Guards the runs.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._nodes: dict[UUID, _Node] = {}
        self._roots: OrderedDict[UUID, Run] = OrderedDict()  # the longest silent first
        self._orphans: OrderedDict[UUID, None] = OrderedDict()

    def root_of(self, run_id: UUID | None) -> Run | None:
        """Return the root run that a run belongs to; None if it is not known."""
        node = None if run_id is None else self._nodes.get(run_id)
        return None if node is None else node.root

    def enter(
        self,
        run_id: UUID,
        parent_run_id: UUID | None,
        thread: str | None,
        create_root: Callable[[], Run],
    ) -> Run | None:
        """Add a run that begins, and return its root.

        Returns:
            None if the root ended before.
        """
        if parent_run_id in self._orphans:
            self._orphans[run_id] = None
            return None
        root = self.root_of(parent_run_id)
        if root is None:  # a root, or a child of something this handler was not given to
            root = create_root()
        else:
            assert parent_run_id is not None
            root.parents[run_id] = parent_run_id
        self._nodes[run_id] = _Node(root, thread)
        self._touch(root)
        return root

    def leave(
        self,
        run_id: UUID,
        *,
        outputs: Any = None,
        error: BaseException | None = None,
        inputs: Any = None,
    ) -> Run | None:
        """Remove a run that ended.

        Returns:
            Its root, if that is over now.
        """
        node = self._nodes.pop(run_id, None)
        if node is None:
            return None
        root = node.root
        was_model_call = run_id in root.model_calls
        root.model_calls.discard(run_id)
        if isinstance(error, GraphBubbleUp):
            if node.thread == root.thread and type(error).__name__ != "ParentCommand":
                root.paused = True
        elif error is not None and root.id != run_id and not was_model_call:
            root.fail(run_id)
        if root.id == run_id:
            if root.task is None:
                root.task = task_of(inputs)
            root.end(outputs, error)
            if root.failed and not isinstance(error, GraphBubbleUp):
                root.paused = False
        self._touch(root)
        # A chain whose stream is closed ends before its model does.
        if not root.ended or (root.abandoned and root.model_calls and not root.is_graph):
            return None
        self._forget(root)
        return root

    def set_paused(self, run_id: UUID | None, paused: bool) -> None:
        """Note that a graph waits for a human, or goes on; a graph in another thread is ignored."""
        node = None if run_id is None else self._nodes.get(run_id)
        if node is not None and node.thread == node.root.thread:
            node.root.paused = paused

    def give_up_stale(self) -> list[Run]:
        """Remove and return the roots that were silent for too long, or the oldest of too many."""
        now = time.monotonic()
        stale = [
            root
            for root in self._roots.values()
            if now - root.touched > (_LINGER if root.ended else _MAX_AGE)
        ]
        if not stale and len(self._roots) > _MAX_OPEN:
            stale = [next(iter(self._roots.values()))]
        for root in stale:
            root.abandoned = True
            self._forget(root)
        return stale

    def _touch(self, root: Run) -> None:
        root.touched = time.monotonic()
        self._roots[root.id] = root
        self._roots.move_to_end(root.id)

    def _forget(self, root: Run) -> None:
        self._roots.pop(root.id, None)
        self._nodes.pop(root.id, None)
        self._orphans[root.id] = None
        for run_id in root.parents:
            if self._nodes.pop(run_id, None) is not None:
                self._orphans[run_id] = None
        while len(self._orphans) > _MAX_ORPHANS:
            self._orphans.popitem(last=False)
