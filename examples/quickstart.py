"""An agent remembers its computation: run me with `make quickstart`, or `make quickstart MODEL=…`.

First a LangChain chain answers questions over a few documents, and every run is captured. Then a
new process asks related questions *without* the documents: once without memory, once with it.
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
    "In what year was the Velmora lighthouse built?": "The Velmora lighthouse was built in 1874 by "
    "Ada Krenn. It is 41 metres high and painted green.",
    "What is the password of the night archive?": "The night archive opens at ten. Visitors must "
    "know its password, which is marmalade, and bring a lamp.",
    "What does the Ostrava ferry carry on Sundays?": "The Ostrava ferry runs all week. On Sundays "
    "it carries only bees to the lime trees across the river.",
    "How many bells hang in the tower of Quill?": "The tower of Quill is known for its 23 bells, "
    "which are rung by hand every morning.",
}
RELATED = [
    "When was the lighthouse of Velmora built?",
    "Tell me the password of the night archive.",
    "What is carried by the Ostrava ferry on Sundays?",
    "What is the number of bells in the tower of Quill?",
]
SYSTEM = ("system", "Answer in one short sentence.")
console = Console()


def chat_model(name: str, memory: KVLogMemory) -> LAGChatModel:
    with console.status("Loading the model (the first time converts a packaged one) …"):
        model = LAGChatModel(
            model=packaged.resolve(name), memory=memory, temperature=0, max_tokens=24
        )
        _ = model.engine
    return model


def capture(name: str, folder: str) -> None:
    """Answer questions with the documents at hand; the callback handler captures each run."""
    with KVLogMemory(folder) as memory:
        prompt = ChatPromptTemplate.from_messages([SYSTEM, ("human", "{document}\n\n{question}")])
        chain = prompt | chat_model(name, memory) | StrOutputParser()
        config = {"callbacks": [memory.callback_handler()]}
        console.rule("1. A chain over documents, captured")
        for question, document in DOCUMENTS.items():
            answer = chain.invoke({"question": question, "document": document}, config)
            console.print(f"[bold]{question}[/]\n  {answer}")
        with Progress(console=console) as progress:
            bar = progress.add_task("Encoding the logs")
            memory.flush(lambda done, total: progress.update(bar, completed=done, total=total))
            progress.update(bar, completed=1, total=1)


def ask(name: str, folder: str) -> None:
    """In a new process: no documents, only the folder of logs."""
    with KVLogMemory(folder) as memory:
        model = chat_model(name, memory)
        model.invoke("Hello", k=0, max_tokens=1)  # warm up, so that times compare
        memory.recall("Hello")
        table = Table("question", "without memory", "with memory", "what it took", show_lines=True)
        table.title = "2. A new process, without the documents"
        for question in RELATED:
            bare = model.invoke([SYSTEM, ("human", question)], k=0)
            helped = model.invoke([SYSTEM, ("human", question)])
            before, after = (answer.response_metadata["lag"] for answer in (bare, helped))
            logs = [
                f"log {key[:6]} (score {score:.2f})"
                for key, score in zip(after["log_ids"], after["scores"], strict=True)
            ]
            table.add_row(
                question,
                f"[red]{bare.content}",
                f"[green]{helped.content}",
                "\n".join(logs) + f"\n{after['injected_tokens']} tokens not re-read\n"
                f"first token after {after['timings']['time_to_first_token']:.2f} s, "
                f"without memory {before['timings']['time_to_first_token']:.2f} s",
            )
        console.print(table)


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "ask":
        ask(*sys.argv[2:])
    else:
        name = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
        with tempfile.TemporaryDirectory() as folder:
            capture(name, folder)
            subprocess.run([sys.executable, __file__, "ask", name, folder], check=True)
