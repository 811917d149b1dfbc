"""An agent remembers its computation: run me with `make quickstart`.

First a LangChain chain answers questions over a few documents, and every run is captured. Then a new
process asks related questions *without* the documents: once without memory, once with it.
"""

import subprocess
import sys
import tempfile

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lag_integrations import KVLogMemory, packaged
from lag_integrations.langchain import LAGChatModel

DOCUMENTS = {
    "Who built the lighthouse of Velmora?": "The lighthouse of Velmora was built by Ada Krenn, "
    "a bridge engineer from Tolmin, in 1874. It is 41 metres high and painted green.",
    "What does the Ostrava ferry carry on Sundays?": "The Ostrava ferry runs all week. On Sundays "
    "it carries only bees: 300 hives are moved to the lime trees across the river.",
    "What is the password of the night archive?": "The night archive opens at ten. Visitors must "
    "know its password, which is 'marmalade', and bring their own lamp.",
    "Which animal won the harbour race of 1952?": "The harbour race of 1952 was won by a goat "
    "named Bertram, who swam the last two hundred metres ahead of eleven dogs.",
}
RELATED = [
    "Who was the builder of the Velmora lighthouse?",
    "What is carried by the Ostrava ferry on a Sunday?",
    "Which password does the night archive ask for?",
    "What animal was the winner of the 1952 harbour race?",
]
console = Console()


def chat_model(memory: KVLogMemory) -> LAGChatModel:
    with console.status("Loading the packaged model (the first time converts it, about 30 s) …"):
        model = LAGChatModel(
            model=packaged.chat_model(), memory=memory, temperature=0, max_tokens=32
        )
        _ = model.engine
    return model


def capture(folder: str) -> None:
    """Answer questions with the documents at hand; the callback handler captures each run."""
    with KVLogMemory(folder) as memory:
        prompt = ChatPromptTemplate.from_messages(
            [("human", "{document}\n\nQuestion: {question}\nAnswer in one sentence.")]
        )
        chain = prompt | chat_model(memory) | StrOutputParser()
        config = {"callbacks": [memory.callback_handler()]}
        console.rule("1. A chain over documents, captured")
        for question, document in DOCUMENTS.items():
            answer = chain.invoke({"question": question, "document": document}, config)
            console.print(f"[bold]{question}[/]\n  {answer}")
        with Progress(console=console) as progress:
            bar = progress.add_task("Encoding the logs")
            memory.flush(lambda done, total: progress.update(bar, completed=done, total=total))
            progress.update(bar, completed=1, total=1)


def ask(folder: str) -> None:
    """In a new process: no documents, only the folder of logs."""
    with KVLogMemory(folder) as memory:
        model = chat_model(memory)
        model.invoke("Hello", k=0, max_tokens=1)  # warm up, so that times compare
        memory.recall("Hello")
        table = Table("question", "without memory", "with memory", "logs used", "not re-read", "TTFT")
        table.title = "2. A new process, without the documents"
        for question in RELATED:
            bare = model.invoke(question, k=0)
            helped = model.invoke(question)
            lag = helped.response_metadata["lag"]
            times = [
                message.response_metadata["lag"]["timings"]["time_to_first_token"]
                for message in (bare, helped)
            ]
            table.add_row(
                question,
                str(bare.content),
                f"[green]{helped.content}",
                "\n".join(f"{i[:6]} {s:.2f}" for i, s in zip(lag["log_ids"], lag["scores"])),
                f"{lag['injected_tokens']} tokens",
                f"{times[1] / times[0]:.2f}x",
            )
        table.caption = "logs used: id and score · TTFT: time to first token, with / without memory"
        console.print(table)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "ask":
        ask(sys.argv[2])
    else:
        with tempfile.TemporaryDirectory() as folder:
            capture(folder)
            subprocess.run([sys.executable, __file__, "ask", folder], check=True)
