"""Two agents hand over to each other, and share one memory of what they did.

You learn that a whole ``AgentWorkflow`` is one log, whichever agents and models took part: a clerk
on a model behind an API looks something up and hands over to a writer, who runs on a local model
with memory. ``with memory.capture():`` captures code that knows nothing of the memory; the context
of a conversation is kept as JSON, with its ``LAGMemory``, and taken up again.

Runs on the packaged 135M model, without a network: ``python examples/llama_index/workflow.py``.
"""

import asyncio
import json
import tempfile
from typing import Any

from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, TextBlock, ToolCallBlock
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.workflow import Context, JsonSerializer
from rich.console import Console

from lag_integrations import KVLogMemory, packaged
from lag_integrations.llama_index import LAGLLM, LAGMemory

console = Console()


def find_stock(item: str) -> str:
    """Find how many pieces of an item are in stock."""
    return f"There are 12 {item} in stock, on the third shelf."


def api_model(messages: list[ChatMessage], **kwargs: Any) -> ChatMessage:
    """Stands for a large model behind an API: it looks up, then hands over."""
    results = [message for message in messages if message.role == "tool"]
    if not results:
        name, arguments = "find_stock", {"item": "green candles"}
    else:
        name, arguments = "handoff", {"to_agent": "writer", "reason": "tell how many there are."}
    call = ToolCallBlock(tool_name=name, tool_kwargs=arguments, tool_call_id=f"c{len(results)}")
    return ChatMessage(role="assistant", blocks=[TextBlock(text=""), call])


def shop(llm: LAGLLM) -> AgentWorkflow:
    """Your own code: two agents."""
    api = MockFunctionCallingLLM(response_generator=api_model, is_chat_model=True)
    clerk = FunctionAgent(
        name="clerk",
        description="Looks things up.",
        system_prompt="You are a clerk. Look things up, then hand over to the writer.",
        tools=[find_stock],
        llm=api,
        can_handoff_to=["writer"],
    )
    writer = FunctionAgent(
        name="writer",
        description="Answers customers.",
        system_prompt="Answer the customer in one short sentence.",
        llm=llm,
    )
    # The default word for a handover is long, and a small model takes it for the question.
    told = "Over to the {to_agent}: {reason}"
    return AgentWorkflow(agents=[clerk, writer], root_agent="clerk", handoff_output_prompt=told)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder, KVLogMemory(folder, k=1) as memory:
        llm = LAGLLM(packaged.chat_model(), temperature=0, max_tokens=32)
        memory.attach(llm.engine)

        console.rule("1. Both agents at work, captured")
        question = "How many green candles do you have?"
        with memory.capture():
            output = await shop(llm).run(question)
        said = f"{output.current_agent_name}: {output.response.content}"
        console.print(f"[bold]{question}[/]\n  {said}")
        memory.flush()
        log = memory.recall(question)[0].trace
        console.print(f"One log of {log.metadata['run_name']}: {[m.role for m in log.messages]}")

        console.rule("2. The writer alone remembers")
        writer = FunctionAgent(llm=llm, system_prompt="Answer the customer in one short sentence.")
        question = "What number of green candles is there?"
        context = Context(writer)
        output = await writer.run(question, ctx=context, memory=LAGMemory(memory))
        console.print(f"[bold]{question}[/]\n  {output.response.content}")
        used = output.raw["lag"]
        console.print(f"  {used['injected_tokens']} tokens of {len(used['log_ids'])} log not read")

        console.rule("3. The conversation goes on another day")
        kept = json.dumps(context.to_dict(serializer=JsonSerializer()))
        context = Context.from_dict(writer, json.loads(kept), serializer=JsonSerializer())
        output = await writer.run("Thank you! Anything else?", ctx=context)
        turns = await (await context.store.get("memory")).aget_all()
        console.print(f"{len(turns)} messages, the last: {turns[-1].content}")
        llm.close()


if __name__ == "__main__":
    asyncio.run(main())
