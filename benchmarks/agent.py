"""An agent that did a task before: ``python -m benchmarks.agent``.

Twelve tasks of a shop, three tools. In the first run an agent of ``create_agent`` must look things
up (its first step is a forced tool call); each run is captured, and judged by whether the answer
holds the figure. Then related questions are asked: of the same agent without memory, of one that is
free to answer at once, without memory, and of that one with the first runs' KV, or with their text.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelCallLimitMiddleware
from langchain.agents.middleware.types import ModelRequest, ModelResponse
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lag_integrations import KVLogMemory, packaged
from lag_integrations.engine.engine import Engine
from lag_integrations.evaluation.machine import stamp
from lag_integrations.langchain import LAGChatModel
from lag_integrations.traces.trace import Trace

_PRICES = {"brass lamp": 37, "wool blanket": 58, "oak table": 412, "copper kettle": 64}
_STOCK = {"green candles": 12, "tin soldiers": 85, "silk scarves": 71, "glass marbles": 930}
_HOURS = {"Monday": "10 to 18", "Thursday": "12 to 20", "Saturday": "8 to 13", "Sunday": "11 to 14"}
_SYSTEM = "You work in a shop. Answer in one short sentence."
_MOST_ROUNDS = 4


@dataclass(frozen=True)
class Task:
    """A question, a related one, and what an answer to both must hold."""

    first: str
    again: str
    gold: str


TASKS = (
    *(
        Task(f"What is the price of the {item}?", f"How much must I pay for a {item}?", str(price))
        for item, price in _PRICES.items()
    ),
    *(
        Task(f"How many {item} are in stock?", f"What number of {item} does the shop have?", str(n))
        for item, n in _STOCK.items()
    ),
    *(
        Task(f"When is the shop open on {day}?", f"Opening hours of the shop, {day}?", hours)
        for day, hours in _HOURS.items()
    ),
)


@tool
def find_price(item: str) -> str:
    """Find the price of an item."""
    return _find(item, _PRICES, "The price of the {key} is {value} crowns.")


@tool
def find_stock(item: str) -> str:
    """Find how many pieces of an item are in stock."""
    return _find(item, _STOCK, "There are {value} {key} in stock.")


@tool
def opening_hours(day: str) -> str:
    """Find when the shop is open on a day of the week."""
    return _find(day, _HOURS, "On {key} the shop is open from {value}.")


def _find(asked: str, known: dict[str, Any], told: str) -> str:
    words = asked.lower().replace("_", " ")
    for key, value in known.items():
        if key.lower() in words or all(word in words for word in key.lower().rstrip("s").split()):
            return told.format(key=key, value=value)
    return f"Nothing is known of {asked!r}."


class LookUpFirst(AgentMiddleware[Any, Any, Any]):
    """The first step of a run must be a tool call, and the second an answer.

    Some models call the same tool again and again if they are left free.
    """

    def wrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], ModelResponse[Any]],
    ) -> ModelResponse[Any]:
        """Force a call if nothing was looked up yet, else forbid it."""
        asked = isinstance(request.messages[-1], HumanMessage)
        return handler(request.override(tool_choice="any" if asked else "none"))


@dataclass
class Arm:
    """What one way of answering took, over all tasks."""

    right: int = 0
    rounds: int = 0
    computed: int = 0
    injected: int = 0
    written: int = 0
    seconds: float = 0.0


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agent", description=__doc__)
    parser.add_argument("--model", help="hub id or folder; the packaged SmolLM2 by default")
    arguments = parser.parse_args()
    engine = Engine.load(packaged.resolve(arguments.model))
    model = LAGChatModel(engine, temperature=0, max_tokens=60)
    with tempfile.TemporaryDirectory() as folder, KVLogMemory(folder, k=1) as memory:
        memory.attach(engine)
        look_up = [LookUpFirst()]
        first = _run(model, look_up, "first", "first run, must look up", memory)
        memory.flush()
        arms = {
            "first run, must look up": first,
            "again, must look up": _run(model, look_up, "again", "again, must look up"),
            "again, free, no memory": _run(model, [], "again", "again, free, no memory"),
            "again, free, KV": _run(model, [memory.middleware()], "again", "again, free, KV"),
            "again, free, text": _run(
                model, [memory.middleware(as_text=True)], "again", "again, free, text"
            ),
        }
    table = Table("run", "right", "rounds", "computed", "injected", "written", "seconds")
    table.title = f"{len(TASKS)} tasks; rounds, tokens and seconds a task"
    for name, arm in arms.items():
        figures = (arm.rounds, arm.computed, arm.injected, arm.written)
        table.add_row(
            name,
            f"{arm.right}/{len(TASKS)}",
            *(f"{figure / len(TASKS):.1f}" for figure in figures),
            f"{arm.seconds / len(TASKS):.2f}",
        )
    table.caption = f"{stamp()} · {engine.name}"
    Console().print(table)


def _run(
    model: LAGChatModel,
    middleware: list[Any],
    which: str,
    name: str,
    memory: KVLogMemory | None = None,
) -> Arm:
    limit = ModelCallLimitMiddleware(run_limit=_MOST_ROUNDS, exit_behavior="end")
    agent: Any = create_agent(
        model,
        [find_price, find_stock, opening_hours],
        system_prompt=_SYSTEM,
        middleware=[limit, *middleware],
    )
    gold = {task.first: task.gold for task in TASKS}

    def solved(trace: Trace) -> bool:
        return gold[trace.task] in trace.last_response

    handler = None if memory is None else memory.callback_handler(judge=solved)
    arm = Arm()
    for task in track(TASKS, description=name):
        started = time.perf_counter()
        state = agent.invoke(
            {"messages": [HumanMessage(getattr(task, which))]},
            {"callbacks": [] if handler is None else [handler]},
        )
        arm.seconds += time.perf_counter() - started
        said = [m for m in state["messages"] if isinstance(m, AIMessage) and m.usage_metadata]
        arm.right += task.gold in str(said[-1].text)
        arm.rounds += len(said)
        for message in said:
            usage = message.usage_metadata
            assert usage is not None
            injected = message.response_metadata["lag"]["injected_tokens"]
            arm.computed += usage["input_tokens"] - injected
            arm.injected += injected
            arm.written += usage["output_tokens"]
    if handler is not None:
        handler.wait_for_judge()
    return arm


if __name__ == "__main__":
    main()
