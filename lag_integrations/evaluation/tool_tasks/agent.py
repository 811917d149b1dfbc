"""The agent: in each turn it calls tools and reads their results, until it answers."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

import torch
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from pydantic import BaseModel, ConfigDict

from lag_integrations import KVLogMemory
from lag_integrations.chat.current import use_memory
from lag_integrations.engine.engine import Engine
from lag_integrations.errors import LAGError
from lag_integrations.evaluation.arms import Arm
from lag_integrations.evaluation.tool_tasks.judge import Checkers, Judge
from lag_integrations.evaluation.tool_tasks.run import TaskRun, Turn
from lag_integrations.evaluation.tool_tasks.simulator import Result, Simulator, refused
from lag_integrations.evaluation.tool_tasks.tasks import Task
from lag_integrations.evaluation.tool_tasks.turn_logs import TurnLogs
from lag_integrations.langchain import LAGChatModel

_INSTRUCTION = (
    "You act for the user by calling tools. Call what the request needs, and read the results "
    "before you go on. When nothing is left to do, answer without a call, and say what you did."
)


class ToolLoop(BaseModel):
    """How long an agent may work on a turn, and on what.

    Attributes:
        rounds: Most model calls of a turn.
        k: Most logs of a model call.
        max_tokens: Most tokens of an answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int
    k: int
    max_tokens: int


class ToolAgent:
    """An agent with the tools of a task.

    Args:
        engine: The model.
        checkers: What its turns are judged by.
        loop: How long it may work.
    """

    def __init__(self, engine: Engine, checkers: Checkers, loop: ToolLoop) -> None:
        self._model = LAGChatModel(
            engine, temperature=0, max_tokens=loop.max_tokens, share_system=True
        )
        self._checkers = checkers
        self._loop = loop

    def read_tools(self, task: Task) -> None:
        """Have the model read the task's tools, which prompts then share.

        So no arm's seconds depend on which of them came first.
        """
        chat = [SystemMessage(_INSTRUCTION), HumanMessage(task.asked[0])]
        self._model.bind_tools(list(task.tools)).invoke(chat, max_tokens=1, kv_log_ids=[])

    def run(self, task: Task, name: str, arm: Arm, memory: KVLogMemory | None) -> TaskRun:
        """Work on a task up to its end, or its first wrong turn, after which nothing counts.

        Args:
            task: The task.
            name: Name of the arm, under which prompts are reused.
            arm: In which form the model gets logs.
            memory: The logs; None if the arm uses none.
        """
        run = TaskRun(task, name)
        simulator, judge = Simulator(task), Judge(task, self._checkers)
        chat: list[BaseMessage] = [SystemMessage(_INSTRUCTION)]
        started = time.perf_counter()
        with nullcontext() if memory is None else use_memory(memory):
            for asked in task.asked:
                before = run.turns[-1].asked if run.turns else None
                logs = TurnLogs(memory, arm, self._loop.k, asked, before)
                turn = Turn(asked, [HumanMessage(asked)])
                run.turns.append(turn)
                try:
                    is_over = self._work(run, turn, chat, logs, arm, simulator)
                except (LAGError, torch.OutOfMemoryError) as error:
                    run.error, turn.failure = type(error).__name__, "error"
                    break
                failure = judge.judge(simulator, calls=turn.calls)
                turn.failure = failure if is_over else "rounds"
                if turn.failure:
                    break
                chat += turn.messages
        run.effort.seconds = time.perf_counter() - started
        return run

    def _work(
        self,
        run: TaskRun,
        turn: Turn,
        chat: list[BaseMessage],
        logs: TurnLogs,
        arm: Arm,
        simulator: Simulator,
    ) -> bool:
        """Work on a turn; return whether the model came to its end within the rounds."""
        model = self._model.bind_tools(list(run.task.tools))
        step: list[str] = []
        for _ in range(self._loop.rounds):
            given = logs.next(step)
            answer = model.invoke(
                [*chat, *turn.messages],
                kv_log_ids=[log.reference for log in given],
                logs_as_text=not arm.uses_segments,
                cache_salt=run.arm,  # so that no arm profits from another's prompts
            )
            run.effort.add(answer)
            run.logs.update({log.reference: log for log in given})
            turn.messages.append(answer)
            results = [*_carried_out(turn, answer, simulator), *_unreadable(answer)]
            if not results:
                return True
            run.effort.calls += len(results)
            run.effort.failed_calls += sum(result.failed for _, result in results)
            turn.messages += [_message(call, result) for call, result in results]
            texts = [str(answer.text), *(result.text for _, result in results)]
            step = [text for text in texts if text.strip()]
        return False


_Carried = list[tuple[Any, Result]]
"""Calls as LangChain has them, and what came of them."""


def _carried_out(turn: Turn, answer: AIMessage, simulator: Simulator) -> _Carried:
    turn.calls += len(answer.tool_calls)
    return [(call, simulator.call(call["name"], call["args"])) for call in answer.tool_calls]


def _unreadable(answer: AIMessage) -> _Carried:
    """Return calls that could not be read; BFCL's judge knows nothing of them."""
    return [(call, refused(call["error"] or "")) for call in answer.invalid_tool_calls]


def _message(call: Any, result: Result) -> ToolMessage:
    return ToolMessage(
        result.text,
        tool_call_id=call["id"],
        name=call["name"],
        status="error" if result.failed else "success",
    )
