"""A tool with which an agent decides for itself when to recall."""

from __future__ import annotations

from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    SkipValidation,
    validate_call,
)

from lag_integrations.langchain.capture.configs import config_of
from lag_integrations.langchain.capture.current import current_owner
from lag_integrations.memory.memory import LogMemory
from lag_integrations.memory.rendering import MAX_CHARS, logs_text
from lag_integrations.memory.safe_recall import SafeRecall, WhereFunction
from lag_integrations.store.filters import Where

DESCRIPTION = (
    "Recall how similar tasks were solved in earlier runs. Use it before working on a task that "
    "may have come up before."
)


class _Question(BaseModel):
    query: str = Field(description="The task or question to find similar earlier runs for.")


@validate_call(config=ConfigDict(arbitrary_types_allowed=True))
def recall_tool(
    memory: LogMemory,
    *,
    name: str = "recall_logs",
    description: str = DESCRIPTION,
    k: NonNegativeInt | None = None,
    min_score: float | None = None,
    where: SkipValidation[Where | WhereFunction | None] = None,
    max_chars: PositiveInt = MAX_CHARS,
) -> BaseTool:
    """Return a tool whose result says what similar past runs did.

    The artifact of a result has the ids of the logs: ``{"lag": {"log_ids": […]}}``.

    Args:
        memory: Where logs are recalled from.
        name: Name of the tool, for the model.
        description: What it does, for the model.
        k: Most logs to recall; the memory's own setting by default.
        min_score: Least similarity; the memory's own setting by default.
        where: Only logs with such metadata; or a function of the call's config that returns such a
            filter. If it fails or returns none, nothing is recalled.
        max_chars: Most characters of a result; the worst logs are left out.

    Raises:
        ValueError: An argument is unknown or not valid.
        StoreError: The filter is malformed.
    """
    recall = SafeRecall(memory, k, min_score, where)

    def recall_logs(query: str, config: RunnableConfig) -> tuple[str, dict[str, Any]]:
        merged = config_of(config)
        found = recall.of(merged, current_owner(merged))(query)
        text, ids = logs_text([log.for_task(query) for log in found], max_chars)
        if ids:
            text = f"Similar earlier runs, most similar first:\n\n{text}"
        else:
            text = "Nothing similar was found in earlier runs."
        return text, {"lag": {"log_ids": ids}}

    return StructuredTool.from_function(
        recall_logs,
        name=name,
        description=description,
        args_schema=_Question,
        response_format="content_and_artifact",
    )
