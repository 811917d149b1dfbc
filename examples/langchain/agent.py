"""An agent that looked something up does not look it up again.

You learn how an agent of ``create_agent`` is captured and judged, how ``memory.middleware()``
gives a later run the KV of earlier ones, so that it may answer without a tool, and how the answer
becomes a pydantic object.

Runs on the packaged 135M model, without a network: ``python examples/langchain/agent.py``.
"""

import tempfile

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from pydantic import BaseModel
from rich.console import Console

from lag_integrations import KVLogMemory, Trace, packaged
from lag_integrations.langchain import LAGChatModel

PRICES = {"brass lamp": 37, "wool blanket": 58}
STOCK = {"green candles": 12, "glass marbles": 930}
HOURS = {"Saturday": "8 to 13", "Sunday": "11 to 14"}
SYSTEM = "You work in a shop. Answer in one short sentence."
console = Console()


def look_up(asked: str, known: dict, told: str) -> str:
    """A forgiving table: a small model writes "green_candles_in_stock", or worse."""
    words = asked.lower().replace("_", " ")
    found = (told.format(key, value) for key, value in known.items() if key.lower() in words)
    return next(found, f"Nothing is known of {asked!r}.")


@tool
def find_price(item: str) -> str:
    """Find the price of an item."""
    return look_up(item, PRICES, "The price of the {} is {} crowns.")


@tool
def find_stock(item: str) -> str:
    """Find how many pieces of an item are in stock."""
    return look_up(item, STOCK, "There are {1} {0} in stock.")


@tool
def opening_hours(day: str) -> str:
    """Find when the shop is open on a day of the week."""
    return look_up(day, HOURS, "On {} the shop is open from {}.")


class LookUpFirst(AgentMiddleware):
    """The first step must be a tool call: a small model would rather guess."""

    def wrap_model_call(self, request, handler):
        asked = request.messages[-1].type == "human"
        return handler(request.override(tool_choice="any") if asked else request)


class Stock(BaseModel):
    """How many pieces of an item there are."""

    item: str
    pieces: int


def judge(trace: Trace) -> bool:
    """Whether a run was a success; runs that were not are not recalled. A model may judge, too."""
    return "12" in trace.last_response


def show(state: dict) -> str:
    for message in state["messages"]:
        console.print(f"  [dim]{message.type:>5}[/] {message.text}", highlight=False)
        for call in getattr(message, "tool_calls", []):
            console.print(f"        calls {call['name']} with {call['args']}")
    steps = [m for m in state["messages"] if isinstance(m, AIMessage)]
    console.print(f"  model calls: {len(steps)}")
    return steps[-1].text


def main() -> None:
    tools = [find_price, find_stock, opening_hours]
    with tempfile.TemporaryDirectory() as folder, KVLogMemory(folder, k=1) as memory:
        # The memory goes into the middleware: it recalls once for a run, not in each call.
        model = LAGChatModel(model=packaged.chat_model(), temperature=0, max_tokens=40)
        memory.attach(model.engine)

        console.rule("1. The first run looks it up")
        handler = memory.callback_handler(judge=judge)
        agent = create_agent(model, tools, system_prompt=SYSTEM, middleware=[LookUpFirst()])
        task = {"messages": "How many green candles are in stock?"}
        show(agent.invoke(task, {"callbacks": [handler]}))
        handler.wait_for_judge()
        memory.flush()
        log = memory.recall(task["messages"])[0].trace
        console.print(f"  logged as a {log.outcome}: {len(log.messages)} messages")

        console.rule("2. A related question, with what the first run left")
        agent = create_agent(model, tools, system_prompt=SYSTEM, middleware=[memory.middleware()])
        task = {"messages": "What number of green candles does the shop have?"}
        answer = show(agent.invoke(task))

        console.rule("3. The answer as an object")
        # Held to the schema token by token, so it is valid however small the model is.
        stock = model.with_structured_output(Stock).invoke(answer)
        console.print(stock)
        model.close()


if __name__ == "__main__":
    main()
