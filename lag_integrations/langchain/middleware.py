"""Middleware of ``langchain.agents.create_agent`` that recalls logs for the model calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Annotated, Any, Literal, cast

from langchain.agents.middleware.types import (
    AgentMiddleware,
    AgentState,
    ModelRequest,
    ModelResponse,
    PrivateStateAttr,
)
from langchain_core.messages import AnyMessage, SystemMessage
from langchain_core.runnables import RunnableWithFallbacks, run_in_executor
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.configurable import DynamicRunnable
from langgraph.config import get_config
from langgraph.runtime import Runtime
from pydantic import ConfigDict, NonNegativeInt, PositiveInt, SkipValidation, validate_call
from typing_extensions import NotRequired

from lag_integrations.chat.current import use_memory
from lag_integrations.chat.query import QueryOf, query_of
from lag_integrations.langchain.capture.configs import config_of
from lag_integrations.langchain.capture.current import current_owner, retrieved
from lag_integrations.langchain.capture.messages import as_step
from lag_integrations.langchain.chat_models import LAGChatModel
from lag_integrations.memory.memory import LogMemory
from lag_integrations.memory.rendering import HEADING, MAX_CHARS, logs_text
from lag_integrations.memory.results import RecalledLog
from lag_integrations.memory.safe_recall import SafeRecall, WhereFunction
from lag_integrations.store.filters import Where
from lag_integrations.traces.conversation import last_two
from lag_integrations.traces.message import Message


class LogState(AgentState[Any]):
    """An agent's state, with the logs or steps that were recalled for its run, latest first."""

    lag_log_ids: NotRequired[Annotated[list[str], PrivateStateAttr]]


class KVLogMiddleware(AgentMiddleware[LogState, Any, Any]):
    """Recall similar runs for an agent: as KV for a `LAGChatModel`, as text for other models.

    Only log ids are put into the model's settings and the agent's state. If the memory fails, a
    warning is logged and the agent goes on without. Logs of earlier turns that stand in a call's
    prompt are skipped; those of turns that were trimmed or summarised may be recalled. Logs that
    documents retrieved in the same captured root run outdate are skipped, too. Others take the
    places of what is skipped.

    Put it after middleware that changes the model of a call (fallbacks, routing): it looks at the
    model of the request. To capture runs, use `KVLogMemory.callback_handler`.

    Example:
        .. code-block:: python

            agent = create_agent(model, tools, middleware=[memory.middleware()])
            agent.invoke({"messages": "…"}, {"callbacks": [memory.callback_handler()]})

    Args:
        memory: Where logs are recalled from.
        recall: ``run``: whole runs, once, when the agent begins, by the newest user message, or
            where that recalls nothing, the newest two. ``step``: single steps of runs, before every
            model call, by what came of the last step (the model's text and the results of its
            tools), or where that recalls nothing, by it behind the user's message; of what it found
            in this run, a call is given the latest `k`.
        k: Most logs to recall, or steps; the memory's own setting by default.
        min_score: Least similarity; the memory's own setting by default.
        where: Only logs with such metadata; or a function of the run's config that returns such a
            filter. If it fails or returns none, nothing is recalled.
        query: What logs are searched by instead: a text, or a function of the messages that
            returns one.
        as_text: Whether a `LAGChatModel`, too, reads logs as text, to compare.
        max_chars: Most characters of logs as text; the worst are left out.

    Raises:
        ValueError: An argument is unknown or not valid.
        StoreError: The filter is malformed.
    """

    state_schema = LogState

    @validate_call(config=ConfigDict(arbitrary_types_allowed=True))
    def __init__(
        self,
        memory: LogMemory,
        *,
        recall: Literal["run", "step"] = "run",
        k: NonNegativeInt | None = None,
        min_score: float | None = None,
        where: SkipValidation[Where | WhereFunction | None] = None,
        query: QueryOf | None = None,
        as_text: bool = False,
        max_chars: PositiveInt = MAX_CHARS,
    ) -> None:
        super().__init__()
        self._memory = memory
        self._each_step = recall == "step"
        self._k = memory.k if k is None else k
        self._recall = SafeRecall(memory, k, min_score, where, steps=self._each_step)
        self._query = query
        self._as_text = as_text
        self._max_chars = max_chars

    def before_agent(self, state: LogState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Recall for the whole run."""
        if self._each_step:
            return {"lag_log_ids": []}
        # Which turns a call's prompt will hold is not known yet: other middleware may trim it.
        logs = self._search(state["messages"])
        return {"lag_log_ids": _references(logs)}  # those of an earlier turn are replaced

    async def abefore_agent(self, state: LogState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Recall for the whole run."""
        return await run_in_executor(None, self.before_agent, state, runtime)

    def before_model(self, state: LogState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Recall for the next step: what was not recalled before in this run."""
        if not self._each_step:
            return None
        known, messages = state.get("lag_log_ids", []), state["messages"]
        ids = _references(self._search(messages, known=known))
        prompt = _steps(messages)
        if len(self._recall.by_id(ids, prompt=prompt)) < len(ids):
            # Others take the places of earlier turns, unless a call's prompt was trimmed.
            ids += _references(self._search(messages, prompt=prompt, known=[*ids, *known]))
        return {"lag_log_ids": [*ids, *known]}

    async def abefore_model(self, state: LogState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Recall for the next step."""
        if not self._each_step:
            return None
        return await run_in_executor(None, self.before_model, state, runtime)

    def wrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], ModelResponse[Any]],
    ) -> ModelResponse[Any]:
        """Call the model with the recalled logs."""
        with use_memory(self._memory):
            return handler(self._with_logs(request))

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        """Call the model with the recalled logs."""
        request = await run_in_executor(None, self._with_logs, request)
        with use_memory(self._memory):
            return await handler(request)

    def _with_logs(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        takes_kv = _takes_kv(request.model)
        if takes_kv and not self._as_text:
            return _with_ids(request, self._ids(request))
        if takes_kv:
            request = _with_ids(request, [])
        task, _ = _texts(request.state["messages"])
        logs = [log.for_task(task) for log in self._logs(request)]
        text, ids = logs_text(logs, self._max_chars)
        if not ids:
            return request
        return request.override(
            system_message=_with_section(request.system_message, HEADING + text, ids)
        )

    def _ids(self, request: ModelRequest[Any]) -> list[str]:
        return _references(self._logs(request))

    def _logs(self, request: ModelRequest[Any]) -> list[RecalledLog]:
        prompt = _steps(request.messages)
        state = cast(LogState, request.state)
        ids = state.get("lag_log_ids", [])
        logs = self._recall.by_id(ids, prompt=prompt, shown=retrieved())
        if self._each_step:
            return logs[: self._k]
        if len(logs) == len(ids):
            return logs
        # Others take the places of what the prompt holds, or documents found since outdate.
        asked = _as_asked(state["messages"])
        is_first = len(asked) == len(state["messages"])
        return self._search(asked, prompt=prompt, count=is_first)

    def _search(
        self,
        messages: Sequence[AnyMessage],
        *,
        prompt: Sequence[Message] = (),
        known: Collection[str] = (),
        count: bool = True,
    ) -> list[RecalledLog]:
        text, before = _texts(messages)
        if self._each_step and (step := _last_step(messages)):
            text, before = "\n".join(step), text
        query = query_of(self._query, messages)
        if query is not None:
            text, before = query, None
        config = config_of()
        recall = self._recall.of(config, current_owner(config))
        return recall.search(
            text, before=before, prompt=prompt, shown=retrieved(), known=known, count=count
        ).logs


def _references(logs: Sequence[RecalledLog]) -> list[str]:
    return [log.reference for log in logs]


def _texts(messages: Sequence[AnyMessage]) -> tuple[str, str | None]:
    """Return what the user said last, and before that."""
    return last_two([str(one.text) for one in messages if one.type == "human"])


def _steps(messages: Sequence[AnyMessage]) -> list[Message]:
    return [step for message in messages if (step := as_step(message)) is not None]


def _with_ids(request: ModelRequest[Any], ids: list[str]) -> ModelRequest[Any]:
    return request.override(model_settings={**request.model_settings, "kv_log_ids": ids})


def _with_section(original: SystemMessage | None, section: str, ids: list[str]) -> SystemMessage:
    """Return the system message with the logs appended, marked so that capture can undo it."""
    lag = {"log_ids": ids, "system": None if original is None else str(original.text)}
    if original is None:
        return SystemMessage(section, additional_kwargs={"lag": lag})
    section = f"\n\n{section}"
    content = (
        original.content + section
        if isinstance(original.content, str)
        else [*original.content, {"type": "text", "text": section}]
    )
    return original.model_copy(
        update={
            "content": content,
            "additional_kwargs": {**original.additional_kwargs, "lag": lag},
        }
    )


def _takes_kv(model: Any) -> bool:
    """Return whether every model that may answer is a `LAGChatModel`."""
    if isinstance(model, RunnableBindingBase):
        return _takes_kv(model.bound)
    if isinstance(model, DynamicRunnable):  # configurable: the one of this run
        return _takes_kv(model.prepare(get_config())[0])
    if isinstance(model, RunnableWithFallbacks):
        return all(_takes_kv(one) for one in model.runnables)
    return isinstance(model, LAGChatModel)


def _as_asked(messages: Sequence[AnyMessage]) -> Sequence[AnyMessage]:
    """Return the conversation when the run began: up to the newest user message."""
    places = [place for place, message in enumerate(messages) if message.type == "human"]
    return messages[: places[-1] + 1] if places else messages


def _last_step(messages: Sequence[AnyMessage]) -> list[str]:
    """Return the texts of the agent's last answer to the task, and of its tools' results."""
    step: list[str] = []
    for message in reversed(messages):
        if message.type == "human":
            break
        step.append(str(message.text))
        if message.type == "ai":
            break
    return [text for text in reversed(step) if text]
