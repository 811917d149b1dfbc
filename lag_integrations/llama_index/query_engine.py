"""A query engine with a memory, around any other one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextvars import copy_context
from typing import Any, Literal

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    StreamingResponse,
)
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.prompts.mixin import PromptDictType, PromptMixinType
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index_instrumentation import get_dispatcher
from pydantic import SkipValidation, validate_call

from lag_integrations.capture.run_metadata import Metadata, checked_metadata
from lag_integrations.chat.current import InjectedLogs, current_logs, inject_logs
from lag_integrations.errors import SettingsError
from lag_integrations.llama_index.capture.current import (
    current_owner,
    open_run,
    retrieved,
)
from lag_integrations.llama_index.capture.handlers import instrumentation
from lag_integrations.llama_index.capture.messages import node_sources
from lag_integrations.llama_index.capture.tags import current_tags
from lag_integrations.llama_index.streams import in_context, with_variables
from lag_integrations.memory.memory import LogMemory
from lag_integrations.memory.safe_recall import (
    Recalled,
    SafeRecall,
    WhereFunction,
    miss_report,
)
from lag_integrations.store.filters import Where
from lag_integrations.traces.owner import Owner

dispatcher = get_dispatcher(__name__)


class LAGQueryEngine(BaseQueryEngine):
    """Give any query engine a memory of the queries that it answered.

    The logs that fit the question are injected into every call that the engine's `LAGLLM` answers
    from, in all response modes, streaming or not; not where it selects, ranks or rewrites. The
    answered query becomes a log with its sources. It is a query engine itself, and may stand within
    or around routers, sub-question engines and ``QueryEngineTool``.

    ``response.metadata["lag"]`` reports what was used. A streamed response has all of it when it
    was read.

    - ``recalled`` (log ids, best first) and their ``scores``, or else the ``nearest_miss``.
    - ``log_ids`` that the LLM took, and those of them ``read_as_text``.
    - ``injected_tokens``, ``reused_tokens``, ``llm_calls``, ``timings`` in seconds, and ``usage``
      (tokens, as in the LLM's responses).
    - ``run_id``, for `KVLogMemory.feedback`.
    - ``within``: the reports of each `LAGQueryEngine` within this one, for sub-questions say.

    A log is left out of a call that is shown a document which was changed since;
    another one takes its place.

    Example:
        .. code-block:: python

            engine = LAGQueryEngine(index.as_query_engine(llm=LAGLLM("…")), memory=memory)
            engine.query("How do we ship to Norway?").metadata["lag"]

    Args:
        query_engine: The engine that answers.
        memory: Where logs are recalled from and put.
        recall: ``run``: whole runs; ``step``: of each run only the step that is nearest to the
            question.
        k: Most logs to recall; the memory's own by default.
        min_score: Least similarity; the memory's own by default.
        where: Only logs with such metadata; or a function of the ``instrument_tags`` at hand (a
            dict) that returns such a filter. If it fails or returns none, nothing is recalled.
        as_text: Let the `LAGLLM` read the logs as text, to compare.
        capture: Whether answered queries become logs.
        metadata: Metadata of these logs; wins over the ``instrument_tags``.
        callback_manager: The engine's own by default.

    Raises:
        SettingsError: There is no query engine or no memory of logs, or `k` is negative.
        ValueError: A setting is unknown or of the wrong type.
        StoreError: The filter is malformed.
        TraceError: The metadata has a key that is taken, or a value that nothing can be found by.
    """

    @validate_call(config={"arbitrary_types_allowed": True})
    def __init__(
        self,
        query_engine: SkipValidation[BaseQueryEngine],
        memory: SkipValidation[LogMemory],
        *,
        recall: Literal["run", "step"] = "run",
        k: int | None = None,
        min_score: float | None = None,
        where: SkipValidation[Where | WhereFunction | None] = None,
        as_text: bool = False,
        capture: bool = True,
        metadata: SkipValidation[Metadata | None] = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        if not isinstance(query_engine, BaseQueryEngine):
            raise SettingsError(
                f"A LAGQueryEngine wraps a query engine, and was given a "
                f"{type(query_engine).__name__}. Of an index, give index.as_query_engine()."
            )
        if not isinstance(memory, LogMemory):
            raise SettingsError(
                "A LAGQueryEngine needs a memory of logs: "
                "LAGQueryEngine(engine, memory=KVLogMemory('./logs'))."
            )
        super().__init__(callback_manager or query_engine.callback_manager)
        self._need = instrumentation.need()
        self._engine = query_engine
        self._memory = memory
        self._recall = SafeRecall(memory, k, min_score, where, steps=recall == "step")
        self._as_text = as_text
        self._capture = capture
        self._metadata = checked_metadata(metadata)

    # The engine's prompts under the engine's names: code that changes them need not know of us.
    def _get_prompts(self) -> PromptDictType:
        return self._engine._get_prompts()

    def _get_prompt_modules(self) -> PromptMixinType:
        return self._engine._get_prompt_modules()

    def _update_prompts(self, prompts: PromptDictType) -> None:
        self._engine._update_prompts(prompts)

    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """Return what the engine retrieves; no logs."""
        return self._engine.retrieve(query_bundle)

    async def aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """Return what the engine retrieves; no logs."""
        retrieve: Any = self._engine.aretrieve  # type: ignore[attr-defined]
        found: list[NodeWithScore] = await retrieve(query_bundle)
        return found

    @dispatcher.span
    def synthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """Answer from given nodes, with logs."""
        task = self._begin(query_bundle, nodes)
        with inject_logs(task.injected):
            return task.with_report(
                self._engine.synthesize(query_bundle, nodes, additional_source_nodes)
            )

    @dispatcher.span
    async def asynthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """Answer from given nodes, with logs."""
        task = await asyncio.to_thread(self._begin, query_bundle, nodes)
        with inject_logs(task.injected):
            response = await self._engine.asynthesize(query_bundle, nodes, additional_source_nodes)
            return task.with_report(response)

    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        task = self._begin(query_bundle)
        with inject_logs(task.injected):
            return task.with_report(self._engine.query(query_bundle))

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        task = await asyncio.to_thread(self._begin, query_bundle)
        with inject_logs(task.injected):
            return task.with_report(await self._engine.aquery(query_bundle))

    def _begin(self, query_bundle: QueryBundle, nodes: Sequence[NodeWithScore] = ()) -> _Task:
        run_id = None
        if self._capture:
            run_id = open_run(self._memory, owner=self, metadata=self._metadata)
        started = time.perf_counter()
        question = query_bundle.query_str
        # A query is a run of its own, of no thread, whichever agent asks.
        owner = Owner(current_owner(self._metadata).user)
        sources = node_sources(nodes)
        recalled = Recalled(self._recall.of(current_tags(), owner), question, shown=sources)
        injected = InjectedLogs(self._memory, recalled, question, self._as_text, sources)
        return _Task(injected, run_id, time.perf_counter() - started)


class _Task:
    """A query that goes on, and the report of it."""

    def __init__(self, injected: InjectedLogs, run_id: str | None, seconds: float) -> None:
        self.injected = injected
        self._seconds = seconds
        self._report: dict[str, Any] = {"run_id": run_id}
        self._update()
        if (around := current_logs.get()) is not None:
            around.within.append(self._report)

    def with_report(self, response: RESPONSE_TYPE) -> RESPONSE_TYPE:
        """Return the response with its report; called where the logs are injected."""
        response.metadata = {**(response.metadata or {}), "lag": self._report}
        self.injected.shown.extend(retrieved())
        # Most calls of a stream are made when it is read: long after, and anywhere.
        if isinstance(response, StreamingResponse):
            response.response_gen = in_context(
                response.response_gen, context=copy_context(), ended=self._update
            )
        elif isinstance(response, AsyncStreamingResponse):
            response.response_gen = with_variables(
                response.response_gen, variables={current_logs: self.injected}, ended=self._update
            )
        else:
            self._update()
        return response

    def _update(self, error: BaseException | None = None) -> None:
        calls = self.injected.reports
        used = [call["lag"] for call in calls]
        found = self.injected.recalled.result
        self._report.update(
            recalled=[log.id for log in found.logs],
            scores=[log.score for log in found.logs],
            nearest_miss=miss_report(found.nearest_miss),
            log_ids=list(dict.fromkeys(key for lag in used for key in lag["log_ids"])),
            read_as_text=list(dict.fromkeys(key for lag in used for key in lag["read_as_text"])),
            injected_tokens=sum(lag["injected_tokens"] for lag in used),
            reused_tokens=sum(lag["reused_tokens"] for lag in used),
            llm_calls=len(calls),
            within=list(self.injected.within),
            usage={
                "prompt_tokens": sum(call["usage"]["prompt_tokens"] for call in calls),
                "completion_tokens": sum(call["usage"]["completion_tokens"] for call in calls),
                "total_tokens": sum(call["usage"]["total_tokens"] for call in calls),
                "prompt_tokens_details": {
                    "cached_tokens": sum(
                        call["usage"]["prompt_tokens_details"]["cached_tokens"] for call in calls
                    )
                },
            },
            timings={
                "recall": self._seconds,
                "load": sum(lag["timings"]["load"] for lag in used),
                "injection": sum(lag["timings"]["injection"] for lag in used),
            },
        )
