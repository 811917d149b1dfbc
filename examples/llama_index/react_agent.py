"""What a ReAct agent found out on a model behind an API, a small local one remembers.

You learn how ``LAGMemory`` goes where an agent's memory goes: it captures the whole run with its
tool calls, and gives a later run of any agent the KV of what fits. A judge says which runs solved
their task: without one, a memory would repeat what was only guessed. The local model has 135M
parameters: by itself it neither keeps ReAct's form nor calls a tool. Its prompt is short for the
same reason.

Runs on the packaged model, without a network: ``python examples/llama_index/react_agent.py``.
"""

import asyncio
import tempfile
from typing import Any

from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.workflow import AgentOutput, ReActAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms.mock import MockFunctionCallingLLM
from rich.console import Console

from lag_integrations import KVLogMemory, Trace, packaged
from lag_integrations.llama_index import LAGLLM, LAGMemory

PRICES = {"brass lamp": 37, "wool blanket": 58, "oak table": 412}
HEADER = """Answer the question. You can call these tools: {tool_names}
{tool_desc}
Write either
Thought: why
Action: tool name
Action Input: {{"item": "value"}}
or
Thought: why
Answer: the answer
"""
console = Console()


def find_price(item: str) -> str:
    """Find the price of an item."""
    return f"The price of the {item} is {PRICES[item]} crowns."


def api_model(messages: list[ChatMessage], **kwargs: Any) -> ChatMessage:
    """Stands for a large model behind an API: it looks most prices up before it answers."""
    asked, last = next(m.content for m in messages if m.role == "user"), messages[-1].content
    item = next(item for item in PRICES if item in asked)
    if item == "oak table":
        text = "Thought: I can guess that.\nAnswer: It costs 99 crowns."
    elif "Observation" not in last:
        text = f'Thought: I need the price.\nAction: find_price\nAction Input: {{"item": "{item}"}}'
    else:
        text = (
            "Thought: I can answer without using any more tools.\n"
            f"Answer: A {item} costs {PRICES[item]} crowns."
        )
    return ChatMessage(role="assistant", content=text)


def judge(trace: Trace) -> bool:
    """Whether a run was a success. A model may judge, too: ``LLMJudge(llm)``."""
    price = next(price for item, price in PRICES.items() if item in trace.task)
    return str(price) in trace.last_response


def tell(question: str, output: AgentOutput) -> None:
    console.print(f"[bold]{question}[/]")
    for call in output.tool_calls:
        console.print(f"  calls {call.tool_name} with {call.tool_kwargs}")
    console.print(f"  {output.response.content}")


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder, KVLogMemory(folder, k=1) as memory:
        formatter = ReActChatFormatter(system_header=HEADER)
        console.rule("1. Runs on the API model, captured and judged")
        api = MockFunctionCallingLLM(response_generator=api_model, is_chat_model=True)
        with memory.capture(judge=judge) as capture:  # judges in the background
            for item in PRICES:
                question = f"How much does a {item} cost?"
                agent = ReActAgent(tools=[find_price], llm=api, formatter=formatter)
                tell(question, await agent.run(question, memory=LAGMemory(memory)))
            capture.wait_for_judge()
        memory.flush()
        for log in memory.store.ledger.info():
            steps = len(log.trace.messages)
            console.print(f"{log.trace.outcome}, {steps} messages: {log.trace.task}")
        recalled = [log.trace.task for log in memory.recall(question, k=3)]
        console.print(f"The guess is not recalled: {question not in recalled}")

        console.rule("2. The local model, without and with memory")
        llm = LAGLLM(packaged.chat_model(), temperature=0, max_tokens=40)
        memory.attach(llm.engine)
        memory.flush()  # the runs are encoded for this model; else that is done when asked for
        question = "What is the price of a wool blanket?"
        agent = ReActAgent(tools=[find_price], llm=llm, formatter=formatter)
        console.print("without memory:")
        tell(question, await agent.run(question))
        console.print("with memory:")
        output = await agent.run(question, memory=LAGMemory(memory))
        tell(question, output)
        used = output.raw["lag"]
        console.print(f"{used['injected_tokens']} tokens of {len(used['log_ids'])} log not read")
        llm.close()


if __name__ == "__main__":
    asyncio.run(main())
