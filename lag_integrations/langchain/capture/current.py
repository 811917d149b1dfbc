"""What captures the call at hand: whose run it belongs to, and what that run retrieved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.runnables.config import ensure_config
from langchain_core.tracers.context import register_configure_hook

from lag_integrations.capture.judges import Judge
from lag_integrations.capture.run_metadata import Metadata
from lag_integrations.langchain.capture.handler import CaptureHandler
from lag_integrations.traces.owner import Owner
from lag_integrations.traces.sources import Source

if TYPE_CHECKING:
    from langchain_core.callbacks.manager import BaseRunManager
    from langchain_core.runnables import RunnableConfig

    from lag_integrations.memory.memory import LogMemory

_capturing: ContextVar[CaptureHandler | None] = ContextVar("lag_capturing", default=None)
register_configure_hook(_capturing, inheritable=True)


@contextmanager
def capture(
    memory: LogMemory, judge: Judge | None = None, *, metadata: Metadata | None = None
) -> Iterator[CaptureHandler]:
    """Capture all runs that begin in this block; see `KVLogMemory.capture`."""
    handler = CaptureHandler(memory, judge, metadata=metadata)
    token = _capturing.set(handler)
    try:
        yield handler
    finally:
        _capturing.reset(token)


def current_owner(config: RunnableConfig, run: BaseRunManager | None = None) -> Owner:
    """Return whose run a call belongs to, by what becomes the metadata of its log.

    Args:
        config: The config of the call (see `config_of`).
        run: The call's run manager, where it is known.
    """
    callbacks = config.get("callbacks") or []
    handlers = callbacks if isinstance(callbacks, list) else callbacks.handlers
    metadata = dict(config.get("metadata") or {})
    for handler in (*handlers, *(() if run is None else run.handlers), _capturing.get()):
        if isinstance(handler, CaptureHandler):
            metadata |= handler.metadata
    return Owner.of(metadata)


def captured_by(run: BaseRunManager | None) -> LogMemory | None:
    """Return the memory that a run is captured in, if any."""
    for handler in () if run is None else run.handlers:
        if isinstance(handler, CaptureHandler):
            return handler.memory
    return None


def retrieved() -> list[Source]:
    """Return what was retrieved so far in the captured root run of the call at hand."""
    # Streams are passed no run manager.
    callbacks = ensure_config().get("callbacks")
    if not isinstance(callbacks, BaseCallbackManager) or callbacks.parent_run_id is None:
        return []
    handlers = [one for one in callbacks.handlers if isinstance(one, CaptureHandler)]
    return [source for one in handlers for source in one.retrieved(callbacks.parent_run_id)]
