"""What a model behind an API found out, a local model remembers as KV.

You learn that any chat model's runs may be captured, here with ``with memory.capture():`` around
code that takes no config, and that a local model encodes them when it is attached: traces belong
to no model, their KV does.

Runs on the packaged 135M model, without a network: ``python examples/langchain/replay.py``.
"""

import tempfile
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from rich.console import Console

from lag_integrations import KVLogMemory, packaged
from lag_integrations.langchain import LAGChatModel

KNOWN = {
    "lighthouse": "The Velmora lighthouse was built in 1874 by Ada Krenn.",
    "ferry": "On Sundays the Ostrava ferry carries only bees.",
    "tower": "23 bells hang in the tower of Quill.",
}
SYSTEM = ("system", "Answer in one short sentence.")
console = Console()


class ApiModel(BaseChatModel):
    """Stands for ChatOpenAI, ChatAnthropic, or whatever you have; it knows three things."""

    @property
    def _llm_type(self) -> str:
        return "api"

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        asked = str(messages[-1].text)
        text = next((said for word, said in KNOWN.items() if word in asked), "I do not know.")
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])


def support_desk(question: str) -> str:
    """Your own code: it calls the API model, and knows nothing of the memory."""
    return str(ApiModel().invoke([SYSTEM, ("human", question)]).text)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, KVLogMemory(folder, k=1) as memory:
        console.rule("1. Runs of the API model, captured")
        with memory.capture():
            for question in (
                "In what year was the Velmora lighthouse built?",
                "What does the Ostrava ferry carry on Sundays?",
                "How many bells hang in the tower of Quill?",
            ):
                console.print(f"[bold]{question}[/]\n  {support_desk(question)}")
        memory.flush()  # embedded now, so they can be found
        console.print(f"Logs: {memory.store.ledger.count()}, none of them encoded: no model yet")

        console.rule("2. A local model takes over")
        model = LAGChatModel(
            model=packaged.chat_model(), memory=memory, temperature=0, max_tokens=24
        )
        _ = model.engine  # loads it, and attaches it to the memory
        memory.flush()  # its worker encodes the traces; without it, they are encoded when asked for
        for question in (
            "When was the lighthouse of Velmora built?",
            "What is carried by the Ostrava ferry on Sundays?",
            "What is the number of bells in the tower of Quill?",
        ):
            bare = model.invoke([SYSTEM, ("human", question)], k=0)
            answer = model.invoke([SYSTEM, ("human", question)])
            used = answer.response_metadata["lag"]
            console.print(f"[bold]{question}[/]")
            console.print(f"  without memory: {bare.content}")
            console.print(f"  with memory:    {answer.content}")
            console.print(
                f"  {used['injected_tokens']} tokens of {len(used['log_ids'])} log not read"
            )
        model.close()


if __name__ == "__main__":
    main()
