"""The callback handler that turns LangChain runs into traces."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from pydantic import ConfigDict, SkipValidation, validate_call

from lag_integrations.capture.judges import Judge, add_judged, is_uncaptured, judges_of
from lag_integrations.capture.log_exceptions import log_exceptions
from lag_integrations.capture.outcomes import is_cancellation
from lag_integrations.capture.run_metadata import Metadata, checked_metadata
from lag_integrations.errors import StoreError, TraceError
from lag_integrations.langchain.capture.configs import run_metadata
from lag_integrations.langchain.capture.open_runs import OpenRuns
from lag_integrations.langchain.capture.pending_runs import pending_runs_of
from lag_integrations.langchain.capture.run import Run
from lag_integrations.memory.memory import LogMemory
from lag_integrations.traces.sources import Source

if TYPE_CHECKING:
    from langgraph.callbacks import GraphInterruptEvent, GraphResumeEvent

try:  # LangGraph reports interrupts only to handlers of its own class.
    from langgraph.callbacks import GraphCallbackHandler as _Handler
except ImportError:
    _Handler = BaseCallbackHandler  # type: ignore[assignment, misc]

logger = logging.getLogger(__name__)


class CaptureHandler(_Handler):
    """Record every root run it sees as a trace of a memory, without ever raising.

    Pass it to a run (``config={"callbacks": [handler]}``), so that it sees the whole run: model
    calls with their messages, tools, and agents within tools. One handler serves any number of
    concurrent runs. The trace goes to the ledger when the run ends; encoding happens on the
    memory's worker thread.

    A run of a thread (a checkpointed agent) holds what is new in its turn. One that is interrupted,
    for a human to decide, is recorded together with what follows when its thread is resumed.

    The outcome of a run is ``failure`` if it ended with an error or with a call that cannot be
    read, and ``incomplete`` if its answer was cut off for length or it was abandoned. Any other is
    what the judge says, or ``success`` without a judge.

    The texts, numbers and booleans in the metadata of a run's config become its log's, and so do
    its tags (``tags``) and its name (``run_name``): logs are filtered by them (``where=``).

    Args:
        memory: Where the traces go.
        judge: Called in the background with the trace of each run that came to a good end.
            Returns whether it is a success (True, False, None, or an outcome). Until then the log's
            outcome is ``unknown``. See also `LLMJudge`.
        metadata: Metadata of all logs of this handler: texts, numbers, booleans, or lists of these.
            It wins over that of the config.

    Raises:
        ValueError: The memory is no memory, or the judge cannot be called.
        TraceError: The metadata has a key that is taken, or a value that nothing can be found by.
    """

    run_inline = True  # keeps the order of events in async runs

    @validate_call(config=ConfigDict(arbitrary_types_allowed=True))
    def __init__(
        self,
        memory: LogMemory,
        judge: Judge | None = None,
        *,
        metadata: SkipValidation[Metadata | None] = None,
    ) -> None:
        self.memory = memory
        self.metadata = checked_metadata(metadata)
        self._judge = judge
        self._runs = OpenRuns()
        self._pending = pending_runs_of(memory)

    def wait_for_judge(self) -> None:
        """Wait until every run that ended so far is judged, before the memory is closed."""
        judges_of(self.memory).wait()

    def retrieved(self, run_id: UUID) -> list[Source]:
        """Return what was retrieved so far in the root run that a run belongs to."""
        with self._runs.lock:
            root = self._runs.root_of(run_id)
            return [] if root is None else list(root.sources)

    @log_exceptions
    def on_chain_start(
        self,
        serialized: dict[str, Any] | None,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Begin a chain, graph or node."""
        root = self._enter(run_id, parent_run_id, metadata, kwargs, inputs, is_chain=True)
        if root is not None and root.id != run_id and getattr(inputs, "resume", None) is not None:
            root.paused = False

    @log_exceptions
    def on_chat_model_start(
        self,
        serialized: dict[str, Any] | None,
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Begin a call of a chat model."""
        self._enter_model_call(run_id, parent_run_id, metadata, kwargs, messages)

    @log_exceptions
    def on_llm_start(
        self,
        serialized: dict[str, Any] | None,
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Begin a call of a text model, whose prompt becomes a user message."""
        messages = [[HumanMessage(prompt)] for prompt in prompts]
        self._enter_model_call(run_id, parent_run_id, metadata, kwargs, messages)

    @log_exceptions
    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Take the answers of a model."""
        with self._runs.lock:
            if root := self._runs.root_of(run_id):
                for message in _answers(response):
                    root.add_message(message, run_id)
        self._leave(run_id)

    @log_exceptions
    def on_llm_error(
        self,
        error: BaseException,
        *,
        run_id: UUID,
        response: LLMResult | None = None,
        **kwargs: Any,
    ) -> None:
        """Take a failed model call, and what a cancelled one wrote; the run may still succeed."""
        with self._runs.lock:
            root = self._runs.root_of(run_id)
            if root is not None and response is not None and is_cancellation(error):
                for message in _answers(response)[:1]:
                    root.add_message(message, run_id)
        self._leave(run_id, error=error)

    @log_exceptions
    def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Begin a tool."""
        self._enter(run_id, parent_run_id, metadata, kwargs)

    @log_exceptions
    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Take the result of a tool; the model may see it in the next call, or never."""
        with self._runs.lock:
            root = self._runs.root_of(run_id)
            if root is not None and root.id != run_id:
                root.add_tool_result(output, kwargs.get("name"), run_id)
        self._leave(run_id)

    @log_exceptions
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """End a tool that failed; the agent may recover."""
        self._leave(run_id, error=error)

    @log_exceptions
    def on_retriever_start(
        self,
        serialized: dict[str, Any] | None,
        query: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Begin a retriever."""
        self._enter(run_id, parent_run_id, metadata, kwargs)

    @log_exceptions
    def on_retriever_end(self, documents: Sequence[Any], *, run_id: UUID, **kwargs: Any) -> None:
        """Take the documents of a retriever."""
        with self._runs.lock:
            if root := self._runs.root_of(run_id):
                root.add_retrieved(documents)
        self._leave(run_id)

    @log_exceptions
    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """End a retriever that failed."""
        self._leave(run_id, error=error)

    @log_exceptions
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """End a chain, graph or node; a streamed chain knows its whole input only now."""
        self._leave(run_id, outputs=outputs, inputs=kwargs.get("inputs"))

    @log_exceptions
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """End a chain, graph or node that failed."""
        self._leave(run_id, error=error, inputs=kwargs.get("inputs"))

    @log_exceptions
    def on_interrupt(self, event: GraphInterruptEvent) -> None:
        """Note that a graph waits for a human, or stopped at a breakpoint."""
        with self._runs.lock:
            self._runs.set_paused(event.run_id, True)

    @log_exceptions
    def on_resume(self, event: GraphResumeEvent) -> None:
        """Note that a graph goes on after an interrupt."""
        with self._runs.lock:
            self._runs.set_paused(event.run_id, False)

    def _enter(
        self,
        run_id: UUID,
        parent_run_id: UUID | None,
        metadata: dict[str, Any] | None,
        fields: Mapping[str, Any],
        inputs: Any = None,
        *,
        is_chain: bool = False,
    ) -> Run | None:
        """Add a run that begins, and return its root; ``fields`` hold its ``name`` and ``tags``."""
        if is_uncaptured():
            return None
        metadata = metadata or {}
        thread = None if (thread_id := metadata.get("thread_id")) is None else str(thread_id)

        def create_root() -> Run:
            self._pending.begin(run_id, self.metadata, self._judge)
            labels = {**run_metadata(metadata, fields.get("tags")), **self.metadata}
            return Run(run_id, inputs, fields.get("name"), labels)

        with self._runs.lock:
            root = self._runs.enter(run_id, parent_run_id, thread, create_root)
            if root is None:
                return None
            root.is_graph = root.is_graph or "langgraph_step" in metadata
            if root.thread is None and thread is not None:
                root.thread = thread
                # A model may be called with the thread's id while its graph waits.
                goes_on = inputs is None or getattr(inputs, "resume", None) is not None
                name = None if goes_on else root.name
                if is_chain and (earlier := self._pending.resume(thread, root.metadata, name)):
                    root.continue_from(earlier)
            stale = self._runs.give_up_stale() if root.id == run_id else []
        for run in stale:
            self._record(run)
        return root

    def _enter_model_call(
        self,
        run_id: UUID,
        parent_run_id: UUID | None,
        metadata: dict[str, Any] | None,
        fields: Mapping[str, Any],
        prompts: Sequence[Sequence[BaseMessage]],
    ) -> None:
        root = self._enter(run_id, parent_run_id, metadata, fields)
        if root is not None:
            with self._runs.lock:
                root.model_calls.add(run_id)
                for messages in prompts:
                    root.add_prompt(messages, run_id)

    def _leave(
        self,
        run_id: UUID,
        *,
        outputs: Any = None,
        error: BaseException | None = None,
        inputs: Any = None,
    ) -> None:
        with self._runs.lock:
            root = self._runs.leave(run_id, outputs=outputs, error=error, inputs=inputs)
        if root is not None:
            self._record(root)

    def _record(self, run: Run) -> None:
        try:
            if not self._pending.claim(run.id):
                return
            metadata, judge = self._pending.end(run.id, self.metadata, self._judge)
            run.metadata |= metadata
            if run.thread is not None and run.waits_for_more:
                self._pending.suspend(run.thread, run)
                return
            add_judged(self.memory, judge, run.trace())
        except TraceError as reason:
            logger.debug("Run %s was not captured: %s", run.id, reason)
        except StoreError as reason:
            logger.warning("Run %s could not be captured: %s", run.id, reason)


def _answers(response: LLMResult) -> list[BaseMessage]:
    """Return the first answer to each prompt, as messages."""
    messages: list[BaseMessage] = []
    for generations in response.generations:
        for generation in generations[:1]:
            if isinstance(generation, ChatGeneration):
                messages.append(generation.message)
            else:
                info = generation.generation_info or {}
                messages.append(AIMessage(generation.text, response_metadata=info))
    return messages
