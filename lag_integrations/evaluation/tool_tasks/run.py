"""What an agent did with one task, turn by turn, and what it took."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from langchain_core.messages import AIMessage, BaseMessage
from pydantic import BaseModel, ConfigDict

from lag_integrations.evaluation.tool_tasks.judge import Failure
from lag_integrations.evaluation.tool_tasks.tasks import Task
from lag_integrations.memory.results import RecalledLog
from lag_integrations.traces.conversation import earlier_turns
from lag_integrations.traces.message import Message
from lag_integrations.traces.message_conversion import as_message
from lag_integrations.traces.trace import Trace


@dataclass
class Turn:
    """One turn.

    Attributes:
        asked: What the user said.
        messages: The conversation from there on.
        calls: Calls that could be read.
        failure: Why it is wrong; None if it is right.
    """

    asked: str
    messages: list[BaseMessage]
    calls: int = 0
    failure: Failure | None = None


class Effort(BaseModel):
    """What a run took.

    Attributes:
        calls: All calls, those included that could not be read.
        failed_calls: Those of them that were refused, raised, or returned an error.
        rounds: Model calls.
        prompt_tokens: Tokens of all prompts, without what was injected.
        read_tokens: Those of them that were computed, not reused.
        injected_tokens: Tokens whose KV was injected.
        generated_tokens: Tokens that the model wrote.
        seconds: Wall-clock time, recall and loading included, but not the first reading of the
            tools.
    """

    model_config = ConfigDict(extra="forbid")

    calls: int = 0
    failed_calls: int = 0
    rounds: int = 0
    prompt_tokens: int = 0
    read_tokens: int = 0
    injected_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0

    def add(self, answer: AIMessage) -> None:
        """Add a model call."""
        usage, report = answer.usage_metadata, answer.response_metadata["lag"]
        assert usage is not None
        prompt = usage["input_tokens"] - report["injected_tokens"]
        self.rounds += 1
        self.prompt_tokens += prompt
        self.read_tokens += prompt - report["reused_tokens"]
        self.injected_tokens += report["injected_tokens"]
        self.generated_tokens += usage["output_tokens"]


@dataclass
class TaskRun:
    """What an agent did with a task.

    Attributes:
        task: The task.
        arm: Name of the arm.
        turns: The turns, up to the first wrong one.
        logs: The logs that were given, by their references.
        error: Name of the error that ended it, if one did.
        effort: What it took.
    """

    task: Task
    arm: str
    turns: list[Turn] = field(default_factory=list)
    logs: dict[str, RecalledLog] = field(default_factory=dict)
    error: str | None = None
    effort: Effort = field(default_factory=Effort)

    @property
    def failure(self) -> Failure | None:
        """Why the task is wrong; None if it is right."""
        return self.turns[-1].failure

    @property
    def turns_right(self) -> int:
        """How many turns are right, up to the first wrong one."""
        return sum(turn.failure is None for turn in self.turns)

    def traces(self) -> Iterator[Trace]:
        """Yield the trace of each turn, without what was recalled."""
        said: list[Message] = []
        for number, turn in enumerate(self.turns):
            messages = [as_message(message) for message in turn.messages]
            yield Trace.from_messages(
                messages,
                task=turn.asked,
                outcome="failure" if turn.failure else "success",
                earlier=earlier_turns(said),
                metadata={
                    "question_id": self.task.turn_id(number),
                    "made_from": "self",
                    "arm": self.arm,
                },
            )
            said += [messages[0], messages[-1]]
