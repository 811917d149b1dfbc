"""The handlers through which LlamaIndex reports its spans and events, while somebody needs them."""

from __future__ import annotations

import itertools
import threading
import weakref
from inspect import BoundArguments
from typing import Any

from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.base import BaseEvent
from llama_index_instrumentation.event_handlers import BaseEventHandler
from llama_index_instrumentation.span_handlers import BaseSpanHandler
from pydantic import PrivateAttr

from lag_integrations.llama_index.capture.tracker import RunTracker


class _SpanHandler(BaseSpanHandler[Any]):
    """Passes spans on to the tracker. The base class would keep all of them for ever."""

    _tracker: RunTracker = PrivateAttr()
    _instrumentation: Instrumentation = PrivateAttr()

    def __init__(self, tracker: RunTracker, instrumentation: Instrumentation) -> None:
        super().__init__()
        self._tracker = tracker
        self._instrumentation = instrumentation

    @classmethod
    def class_name(cls) -> str:
        return "LAGSpanHandler"

    def span_enter(
        self,
        id_: str,
        bound_args: BoundArguments,
        instance: Any = None,
        parent_id: str | None = None,
        tags: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._tracker.on_span_enter(id_, instance, bound_args, parent_id)

    def span_exit(
        self,
        id_: str,
        bound_args: BoundArguments,
        instance: Any = None,
        result: Any = None,
        **kwargs: Any,
    ) -> None:
        self._tracker.on_span_exit(id_, result)
        self._instrumentation.remove_if_unneeded()

    def span_drop(
        self,
        id_: str,
        bound_args: BoundArguments,
        instance: Any = None,
        err: BaseException | None = None,
        **kwargs: Any,
    ) -> None:
        self._tracker.on_span_drop(id_, err)
        self._instrumentation.remove_if_unneeded()

    def new_span(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: nobody calls this."""

    def prepare_to_exit_span(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: nobody calls this."""

    def prepare_to_drop_span(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: nobody calls this."""


class _EventHandler(BaseEventHandler):
    """Passes events on to the tracker."""

    _tracker: RunTracker = PrivateAttr()

    def __init__(self, tracker: RunTracker) -> None:
        super().__init__()
        self._tracker = tracker

    @classmethod
    def class_name(cls) -> str:
        return "LAGEventHandler"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self._tracker.on_event(event)


class Need:
    """Keeps LlamaIndex instrumented for as long as it is alive.

    A `LAGMemory` holds one, for example: a run has to be watched from its beginning, which is
    before the run reads the memory.
    """


class Instrumentation:
    """Adds the handlers to LlamaIndex's root dispatcher, and removes them when nobody needs them.

    LlamaIndex has one root dispatcher for the process, and no method that removes a handler.

    Args:
        tracker: Is told of all spans and events.
    """

    def __init__(self, tracker: RunTracker) -> None:
        self._tracker = tracker
        self._span_handler = _SpanHandler(tracker, self)
        self._event_handler = _EventHandler(tracker)
        self._needs: set[int] = set()
        self._numbers = itertools.count()
        self._lock = threading.RLock()

    def need(self) -> Need:
        """Instrument LlamaIndex for as long as the returned object is alive."""
        need, number, root = Need(), next(self._numbers), get_dispatcher()
        with self._lock:
            self._needs.add(number)
            weakref.finalize(need, self._end, number).atexit = False
            if self._span_handler not in root.span_handlers:
                root.add_span_handler(self._span_handler)
            if self._event_handler not in root.event_handlers:
                root.add_event_handler(self._event_handler)
        return need

    def remove_if_unneeded(self) -> None:
        """Remove the handlers, unless there is a need or something that began still goes on."""
        # Never waiting: the collector may call this in the middle of anything.
        if self._needs or not self._lock.acquire(blocking=False):
            return
        try:
            if self._needs or not self._tracker.is_idle:
                return
            root = get_dispatcher()
            # New lists: another thread may be iterating over the old ones.
            root.span_handlers = [h for h in root.span_handlers if h is not self._span_handler]
            root.event_handlers = [h for h in root.event_handlers if h is not self._event_handler]
        finally:
            self._lock.release()

    def _end(self, number: int) -> None:
        self._needs.discard(number)
        self.remove_if_unneeded()


tracker = RunTracker()
"""The tracker of this process, since there is one root dispatcher."""
instrumentation = Instrumentation(tracker)
"""The handlers that tell it."""
