"""A query engine asked twice: ``python -m benchmarks.query_engine --data DIR``.

MuSiQue questions over the closed corpus: a ``VectorStoreIndex`` on Chroma with MiniLM. The first
pass is asked of the plain engine and of `LAGQueryEngine`, whose memory fills. In the second pass,
the same questions come back, verbatim and reworded, with logs as KV and as text: *own* logs (of the
first pass; those with a wrong answer are marked as failures, as a user's feedback would, and not
recalled), and *corrected* logs (somebody put the right answer in). The engine is told to begin with
"The answer is"; what follows is scored.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chromadb
from llama_index.core import Document, PromptTemplate, StorageContext, VectorStoreIndex
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.event_handlers import BaseEventHandler
from pydantic import PrivateAttr
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from lag_integrations import KVLogMemory, packaged
from lag_integrations.engine.engine import Engine
from lag_integrations.evaluation.machine import stamp
from lag_integrations.evaluation.scoring import exact_match, f1
from lag_integrations.llama_index import LAGLLM, LAGQueryEngine
from lag_integrations.traces.trace import Trace

_PROMPT = PromptTemplate(
    "Read the documents, then answer the question. Begin with: The answer is\n\n"
    "Documents:\n{context_str}\n\nQuestion: {query_str}"
)
# Up to the end of the sentence; "G." and "Dr." end none.
_ANSWER = re.compile(
    r"answer is:?\s*(.*?)\s*(?:(?<=\w\w\w)\.\s|(?<=\d)\.\s|\.?\s*$|\n)", re.IGNORECASE
)


@dataclass(frozen=True)
class Case:
    """A question, its rewording, and what counts as its answer."""

    question: str
    reworded: str
    golds: tuple[str, ...]


class Calls(BaseEventHandler):
    """Counts the calls of LLMs, whoever makes them."""

    _calls: list[dict[str, Any]] = PrivateAttr(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        """Return its name for LlamaIndex."""
        return "Calls"

    @classmethod
    def added(cls) -> Calls:
        """Make one that sees all calls from now on."""
        calls = cls()
        get_dispatcher().add_event_handler(calls)
        return calls

    def handle(self, event: Any, **kwargs: Any) -> None:
        """Take an event."""
        if isinstance(event, LLMChatEndEvent) and event.response is not None:
            self._calls.append(dict(event.response.raw or {}))

    def take(self) -> list[dict[str, Any]]:
        """Return the calls since the last call of this method, and forget them."""
        calls, self._calls = self._calls, []
        return calls


@dataclass
class Arm:
    """What one way of answering took, over all questions."""

    exact: int = 0
    f1: float = 0.0
    calls: int = 0
    computed: int = 0
    injected: int = 0
    with_logs: int = 0
    seconds: float = 0.0


def load(data: Path, most: int) -> tuple[list[Case], list[Document]]:
    """Load the questions and the documents."""
    folder = data / "musique"
    rows = json.loads((folder / "closed_questions.json").read_text("utf-8"))[:most]
    cases = [
        Case(row["question"], reworded(row["question"]), (row["answer"], *row["answer_aliases"]))
        for row in rows
    ]
    corpus = json.loads((folder / "closed_corpus.json").read_text("utf-8"))
    return cases, [Document(text=f"{row['title']}\n{row['text']}") for row in corpus]


def reworded(question: str) -> str:
    """Return the question put indirectly, by a rule: the data has no paraphrases."""
    first, _, rest = question.rstrip("? ").partition(" ")
    return f"I have been wondering for a while: {first.lower()} {rest}? Can you help me with that?"


def main() -> None:
    """Run all arms and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.query_engine", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with musique/")
    parser.add_argument("--model", help="hub id or folder; the packaged SmolLM2 by default")
    parser.add_argument("--questions", type=int, default=100, help="how many")
    parser.add_argument("--documents", type=int, default=2, help="retrieved for a question")
    arguments = parser.parse_args()
    cases, documents = load(arguments.data, arguments.questions)
    engine = Engine.load(packaged.resolve(arguments.model))
    llm = LAGLLM(engine, temperature=0, max_tokens=24)
    calls = Calls.added()
    arms: dict[str, Arm] = {}

    with tempfile.TemporaryDirectory() as folder:
        index = _index(Path(folder) / "documents", documents)
        plain = index.as_query_engine(
            llm=llm, similarity_top_k=arguments.documents, text_qa_template=_PROMPT
        )
        questions = [case.question for case in cases]
        others = [case.reworded for case in cases]

        def run(name: str, engine: BaseQueryEngine, asked: Sequence[str]) -> list[Any]:
            arms[name], responses = _run(name, engine, asked, cases, calls)
            return responses

        with (
            KVLogMemory(Path(folder) / "own", k=1) as own,
            KVLogMemory(Path(folder) / "corrected", k=1) as corrected,
        ):
            run("first, no memory", plain, questions)
            remembering = LAGQueryEngine(plain, memory=own)
            responses = run("first, memory fills", remembering, questions)
            for case, response in zip(cases, responses, strict=True):
                right = any(exact_match(answer(response), gold) for gold in case.golds)
                run_id = response.metadata["lag"]["run_id"]
                own.feedback(run_id, outcome="success" if right else "failure")
            corrected.attach(engine)
            logs = {log.trace.task: log.trace for log in own.get(own.store.ledger.ids())}
            corrected.add_many(_corrected(logs[case.question], case) for case in cases)
            for memory in (own, corrected):
                memory.flush()
            run("reworded, no memory", plain, others)
            for way, whose, memory, asked in (
                ("verbatim", "own", own, questions),
                ("verbatim", "corrected", corrected, questions),
                ("reworded", "corrected", corrected, others),
            ):
                for form in ("KV", "text"):
                    as_text = form == "text"
                    asking = LAGQueryEngine(plain, memory=memory, as_text=as_text, capture=False)
                    run(f"{way}, {whose} logs, {form}", asking, asked)
    _show(arms, len(cases), len(documents), engine)


def _index(path: Path, documents: Sequence[Document]) -> VectorStoreIndex:
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding
    from llama_index.vector_stores.chroma import ChromaVectorStore

    settings = chromadb.Settings(anonymized_telemetry=False)
    client = chromadb.PersistentClient(str(path), settings)
    store = ChromaVectorStore(chroma_collection=client.create_collection("documents"))
    return VectorStoreIndex.from_documents(
        documents,
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=HuggingFaceEmbedding(str(packaged.embedder())),
        show_progress=True,
    )


def _corrected(log: Trace, case: Case) -> Trace:
    """Return the log of a question, with the right answer in place of the one that was given."""
    said = log.messages[-1].model_copy(update={"content": f"The answer is {case.golds[0]}."})
    return Trace.from_messages([*log.messages[:-1], said], task=log.task, outcome="success")


def answer(response: Any) -> str:
    """What stands after "The answer is", or all of a response."""
    found = _ANSWER.search(str(response))
    return found[1] if found else str(response)


def _run(
    name: str, engine: BaseQueryEngine, asked: Sequence[str], cases: Sequence[Case], calls: Calls
) -> tuple[Arm, list[Any]]:
    arm, responses = Arm(), []
    for question, case in zip(track(asked, description=name), cases, strict=True):
        calls.take()
        started = time.perf_counter()
        response = engine.query(question)
        arm.seconds += time.perf_counter() - started
        responses.append(response)
        made = calls.take()
        arm.exact += any(exact_match(answer(response), gold) for gold in case.golds)
        arm.f1 += max(f1(answer(response), gold) for gold in case.golds)
        arm.calls += len(made)
        arm.with_logs += any(call["lag"]["log_ids"] for call in made)
        for call in made:
            arm.injected += call["lag"]["injected_tokens"]
            known = call["lag"]["injected_tokens"] + call["lag"]["reused_tokens"]
            arm.computed += call["usage"]["prompt_tokens"] - known
    return arm, responses


def _show(arms: dict[str, Arm], count: int, documents: int, engine: Engine) -> None:
    headings = ("EM", "F1", "with logs", "LLM calls", "computed", "injected", "seconds")
    table = Table(Column("pass", no_wrap=True), *headings)
    table.title = f"{count} MuSiQue questions, {documents} documents; figures a question"
    for name, arm in arms.items():
        table.add_row(
            name,
            f"{arm.exact / count:.0%}",
            f"{arm.f1 / count:.0%}",
            f"{arm.with_logs / count:.0%}",
            f"{arm.calls / count:.1f}",
            f"{arm.computed / count:.0f}",
            f"{arm.injected / count:.1f}",
            f"{arm.seconds / count:.2f}",
        )
    table.caption = f"{stamp()} · {engine.name}"
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
