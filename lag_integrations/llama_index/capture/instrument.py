"""Captures whole LlamaIndex runs as traces, off the hot path and without ever raising."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import BoundArguments
from typing import TYPE_CHECKING, Any

from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.base import BaseEvent
from llama_index_instrumentation.event_handlers import BaseEventHandler
from llama_index_instrumentation.span import active_span_id
from llama_index_instrumentation.span_handlers import BaseSpanHandler
from pydantic import PrivateAttr

from lag_integrations.capture.judges import Judge, judges_of
from lag_integrations.capture.run_metadata import Metadata, checked_metadata
from lag_integrations.llama_index.capture.run import Receiver
from lag_integrations.llama_index.capture.tags import current_tags
from lag_integrations.llama_index.capture.tracker import Block, Watch, current_block
from lag_integrations.traces.owner import Owner
from lag_integrations.traces.sources import Source

if TYPE_CHECKING:
    from lag_integrations.memory.memory import LogMemory

logger = logging.getLogger(__name__)


class _SpanHandler(BaseSpanHandler[Any]):
    """Tells of spans. The base class would keep all of them for ever."""

    _watch: Watch = PrivateAttr(default_factory=Watch)

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
        self._watch.enter(id_, instance, bound_args, parent_id)

    def span_exit(
        self,
        id_: str,
        bound_args: BoundArguments,
        instance: Any = None,
        result: Any = None,
        **kwargs: Any,
    ) -> None:
        self._watch.exit(id_, result)

    def span_drop(
        self,
        id_: str,
        bound_args: BoundArguments,
        instance: Any = None,
        err: BaseException | None = None,
        **kwargs: Any,
    ) -> None:
        self._watch.drop(id_, err)

    def new_span(self, *args: Any, **kwargs: Any) -> None:
        """Never called."""

    def prepare_to_exit_span(self, *args: Any, **kwargs: Any) -> None:
        """Never called."""

    def prepare_to_drop_span(self, *args: Any, **kwargs: Any) -> None:
        """Never called."""


class _EventHandler(BaseEventHandler):
    """Tells of events."""

    _watch: Watch = PrivateAttr()

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    @classmethod
    def class_name(cls) -> str:
        return "LAGEventHandler"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self._watch.on_event(event)


def _register() -> Watch:
    """One watch for the process, also if this module is imported again: there is no remove."""
    root = get_dispatcher()
    for handler in root.span_handlers:
        if handler.class_name() == _SpanHandler.class_name():
            return handler._watch  # type: ignore[attr-defined, no-any-return]
    spans = _SpanHandler()
    root.add_span_handler(spans)
    root.add_event_handler(_EventHandler(spans._watch))
    return spans._watch


_watch = _register()


class Capture:
    """Runs that are captured into a memory.

    Args:
        block: What is captured.
    """

    def __init__(self, block: Block) -> None:
        self._block = block

    def wait_for_judge(self) -> None:
        """Wait until every run that ended so far is judged, before the memory is closed."""
        _watch.recorder.wait()
        judges_of(self._block.memory).wait()

    def stop(self) -> None:
        """Capture no run that begins from now on; for `instrument`."""
        _watch.stop(self._block)
        _watch.recorder.wait()


@contextmanager
def capture(
    memory: LogMemory, judge: Judge | None = None, *, metadata: Metadata | None = None
) -> Iterator[Capture]:
    """Capture all runs that begin in here; see `KVLogMemory.capture`."""
    block = Block(memory, Receiver(judge, checked_metadata(metadata)), active_span_id.get())
    token = current_block.set(block)
    try:
        yield Capture(block)
    finally:
        current_block.reset(token)
        _watch.recorder.wait()


def instrument(
    memory: LogMemory, judge: Judge | None = None, *, metadata: Metadata | None = None
) -> Capture:
    """Capture all runs of this process; see `KVLogMemory.instrument`."""
    block = Block(memory, Receiver(judge, checked_metadata(metadata)), None)
    _watch.capture_everywhere(block)
    return Capture(block)


def open_run(
    memory: LogMemory,
    *,
    owner: object = None,
    thread: str | None = None,
    metadata: Metadata | None = None,
    task: str | None = None,
) -> str | None:
    """Capture the run that goes on, from within it.

    Args:
        memory: Where its trace goes, too.
        owner: The run is the outermost call of it that leads here without leaving it; by default
            the nearest run of a workflow or agent, or turn of a chat engine.
        thread: The conversation that it belongs to.
        metadata: Metadata of its log (see `checked_metadata`).
        task: What it was asked, unless its arguments say so.

    Returns:
        Its id; None where there is no such run.
    """
    try:
        return _watch.open(memory, Receiver(None, metadata or {}), owner, thread, task)
    except Exception as error:
        logger.warning("A run is not captured (%s).", type(error).__name__)
        return None


def note_recalled(texts: Mapping[str, str]) -> None:
    """Say that texts were recalled into the run that goes on, so that it is not they it learns.

    Args:
        texts: The ids of their logs, by text.
    """
    _watch.recalled(texts)


def retrieved() -> list[Source]:
    """Return what was retrieved in the call that goes on, and in all those around it."""
    return _watch.retrieved()


def current_run() -> str | None:
    """Return the id of the run that goes on, if it is captured."""
    return _watch.run_id()


def current_owner(metadata: Metadata | None = None, thread: str | None = None) -> Owner:
    """Return whose run goes on, by what becomes the metadata of its log.

    Args:
        metadata: What else is said of it.
        thread: Its conversation, where that is known.
    """
    said = {**current_tags(), **_watch.metadata(), **(metadata or {})}
    return Owner.of(said if thread is None else {**said, "thread_id": thread})


def captured_by() -> LogMemory | None:
    """Return the memory that the run that goes on is captured in, if it is."""
    return _watch.memory()


def is_choosing() -> bool:
    """Whether the run selects, ranks, rewrites or retrieves here, rather than answers."""
    return _watch.is_choosing()
