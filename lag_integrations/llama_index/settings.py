"""The settings that our LlamaIndex classes share, and keyword arguments for type checkers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.bridge.pydantic import BaseModel, ConfigDict, Field
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.types import BaseOutputParser, PydanticProgramMode

from lag_integrations.capture.run_metadata import checked_metadata
from lag_integrations.chat.settings_dict import ModelSettingsDict
from lag_integrations.llama_index.capture.current import current_owner, open_run
from lag_integrations.llama_index.capture.tags import current_tags
from lag_integrations.llama_index.task_recall import Task
from lag_integrations.memory.memory import LogMemory
from lag_integrations.memory.safe_recall import SafeRecall, check_where


class LAGLLMSettings(ModelSettingsDict, total=False):
    """The fields of `LAGLLM`, which says what they mean, and those of every LlamaIndex LLM."""

    kv_reserve: int

    callback_manager: CallbackManager | None
    rate_limiter: Any
    system_prompt: str | None
    messages_to_prompt: Callable[[Sequence[ChatMessage]], str] | None
    completion_to_prompt: Callable[[str], str] | None
    output_parser: BaseOutputParser | None
    pydantic_program_mode: PydanticProgramMode
    query_wrapper_prompt: BasePromptTemplate | None


class RecallSettingsDict(TypedDict, total=False):
    """The fields of `RecallSettings`, which says what they mean."""

    recall: Literal["run", "step"]
    k: int | None
    min_score: float | None
    where: dict[str, Any] | Callable[[Any], Any] | None
    query: str | Callable[[list[Any]], str] | None
    as_text: bool
    capture: bool
    metadata: dict[str, Any]


class RecallSettings(BaseModel):
    """What a memory for agents recalls, and what it captures."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    recall: Literal["run", "step"] = "run"
    """Whether whole runs are given, or of each only the step that is nearest to what is asked."""
    k: int | None = Field(default=None, ge=0)
    """Most logs to recall; the memory's own setting by default."""
    min_score: float | None = Field(default=None, ge=-1, le=1)
    """Least similarity of a recalled log; the memory's own setting by default."""
    where: dict[str, Any] | Callable[[Any], Any] | None = None
    """Only logs with such metadata are recalled; or a function of the ``instrument_tags`` at hand
    (a dict) that returns such a filter. If it fails or returns none, nothing is recalled."""
    query: str | Callable[[list[Any]], str] | None = None
    """What logs are searched by instead: a text, or a function of the messages that returns one;
    it is called at each step."""
    as_text: bool = False
    """Whether logs are inserted as text, for LLMs that are not a `LAGLLM`."""
    capture: bool = True
    """Whether the runs in which the memory is read are captured."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Metadata of their logs; they win over the ``instrument_tags``."""

    def _check(self) -> None:
        """Refuse a malformed filter or metadata, with our own errors instead of pydantic's."""
        check_where(self.where)
        self.metadata = checked_metadata(self.metadata)

    def _open_run(self, memory: LogMemory, task: Task | None, session: str | None) -> str | None:
        """Capture the run that goes on, if that is wanted, and return its id."""
        if not self.capture:
            return None
        text = None if task is None else task.text
        return open_run(memory, thread=session, metadata=self.metadata, task=text)

    def _safe_recall(self, memory: LogMemory, session: str | None) -> SafeRecall:
        """Return the recall of these settings for the run that goes on."""
        owner = current_owner(self.metadata, session)
        steps = self.recall == "step"
        recall = SafeRecall(memory, self.k, self.min_score, self.where, steps=steps)
        return recall.of(current_tags(), owner)
