"""A chain that remembers: what a captured run is, and how a later question uses it.

You learn how a handler captures whole runs, how a question is answered from them without its
document, what ``response_metadata["lag"]`` says about it, how ``k=0`` switches the memory off, how
answers are streamed, and how feedback keeps what helped and drops what harmed.

Runs on the packaged 135M model, without a network: ``python examples/langchain/chain.py``.
"""

import tempfile

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from rich.console import Console

from lag_integrations import KVLogMemory, packaged
from lag_integrations.langchain import LAGChatModel

DOCUMENTS = {
    "In what year was the Velmora lighthouse built?": "The Velmora lighthouse was built in 1874 by "
    "Ada Krenn. It is 41 metres high and painted green.",
    "What is the password of the night archive?": "The night archive opens at ten. Visitors must "
    "know its password, which is marmalade, and bring a lamp.",
}
SYSTEM = ("system", "Answer in one short sentence.")
console = Console()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, KVLogMemory(folder) as memory:
        model = LAGChatModel(
            model=packaged.chat_model(), memory=memory, temperature=0, max_tokens=24
        )

        console.rule("1. A chain over documents, captured")
        prompt = ChatPromptTemplate.from_messages([SYSTEM, ("human", "{document}\n\n{question}")])
        chain = prompt | model | StrOutputParser()
        # In the config, the handler sees the whole run: prompt, model, parser. One run is one log.
        config = {"callbacks": [memory.callback_handler()]}
        for question, document in DOCUMENTS.items():
            answer = chain.invoke({"question": question, "document": document}, config)
            console.print(f"[bold]{question}[/]\n  {answer}")
        # The log is on disk already. Its KV is made by a thread; here we wait for it.
        memory.flush()

        console.rule("2. Asked otherwise, without the documents")
        question = "When was the lighthouse of Velmora built?"
        without = model.invoke([SYSTEM, ("human", question)], k=0)
        answer = model.invoke([SYSTEM, ("human", question)])
        console.print(f"[bold]{question}[/]")
        console.print(f"  k=0:         {without.content}")
        console.print(f"  with memory: {answer.content}")

        console.rule("3. What was used")
        used = answer.response_metadata["lag"]
        console.print(used)
        # Injected tokens were not read again, so they count as read from a cache.
        console.print(answer.usage_metadata)

        console.rule("4. Streamed")
        for chunk in model.stream(
            [SYSTEM, ("human", "Tell me the password of the night archive.")]
        ):
            console.print(chunk.text, end="")
        console.print()

        console.rule("5. Feedback")
        log_id = used["log_ids"][0]
        memory.feedback([log_id], helped=True)  # kept longer when there is a budget
        memory.feedback([log_id], helped=False)
        memory.feedback([log_id], helped=False)  # it harmed more often than it helped
        left = memory.recall("When was the lighthouse of Velmora built?")
        console.print(f"Recalled before: {used['log_ids']}")
        console.print(f"Recalled now:    {[log.id for log in left]}")
        model.close()


if __name__ == "__main__":
    main()
