"""Documents that change: ``python -m benchmarks.changed``.

A query engine, and an agent with a tool that searches, answer sixty questions on a handbook of 120
documents, and their memory fills; runs with a wrong answer are marked as failures, as a user's
feedback would. Then forty of the documents change, and all questions come back verbatim: without
memory, and with the logs as KV and as text. The query engine is also asked with logs that do not
say what they come from, so that only the documents in the prompt speak for the change, and with
these before the documents; the agent, which need not search, after the memory was told which
documents changed, and where it has to search.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import track

from benchmarks.asked import Answered, AnswerFile, name_of, report
from benchmarks.changed.documents import Page, pages
from benchmarks.changed.engines import Agent, Answers, Memory, QueryEngine
from lag_integrations import KVLogMemory, packaged
from lag_integrations.engine.engine import Engine
from lag_integrations.engine.segment_placement import Placement
from lag_integrations.evaluation.machine import stamp
from lag_integrations.traces.reserved_metadata import VERDICT, without
from lag_integrations.traces.sources import SOURCES

_NONE = "no memory"


@dataclass(frozen=True)
class _Way:
    """How the questions are asked again.

    Attributes:
        with_memory: Whether there is a memory.
        as_text: Whether its logs are read as text.
        by_step: Whether an agent is given single steps of them.
        told: Whether it was told which documents changed.
        must_look: Whether an agent has to search before it answers.
        unknown: Whether its logs do not say what they come from.
        placement: Where logs stand.
    """

    with_memory: bool = True
    as_text: bool = False
    by_step: bool = False
    told: bool = False
    must_look: bool = False
    unknown: bool = False
    placement: Placement | None = None


_PLAIN = {_NONE: _Way(with_memory=False), "KV": _Way(), "text": _Way(as_text=True)}
_AGAIN = {
    "query engine": {
        **_PLAIN,
        "KV, sources unknown": _Way(unknown=True),
        "text, sources unknown": _Way(unknown=True, as_text=True),
        "KV before the documents, sources unknown": _Way(unknown=True, placement="after_system"),
    },
    "agent": {
        **_PLAIN,
        "KV, told of the change": _Way(told=True),
        "text, told of the change": _Way(told=True, as_text=True),
        "no memory, has to search": _Way(with_memory=False, must_look=True),
        "KV, has to search": _Way(must_look=True),
        "text, has to search": _Way(as_text=True, must_look=True),
        "KV of steps, has to search": _Way(by_step=True, must_look=True),
    },
}


def main() -> None:
    """Ask, print tables and write them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.changed", description=__doc__)
    parser.add_argument("--model", help="packaged model, hub id or folder; SmolLM2 by default")
    parser.add_argument("--questions", type=int, help="how many questions; all by default")
    parser.add_argument(
        "--engines", nargs="+", choices=_AGAIN, default=list(_AGAIN), metavar="ENGINE"
    )
    parser.add_argument("--out", type=Path, default=Path("results/changed"), help="a folder")
    arguments = parser.parse_args()
    engine = Engine.load(packaged.resolve(arguments.model))
    asked = pages()[:: len(pages()) // arguments.questions if arguments.questions else 1]
    for name in arguments.engines:
        folder = arguments.out / name.replace(" ", "_")
        memory = folder / f"memory-{name_of(engine).replace('/', '_')}"
        _fill(engine, name, asked, AnswerFile(folder / "first.jsonl"), memory)
        again = AnswerFile(folder / "again.jsonl")
        for way, how in _AGAIN[name].items():
            _ask_again(engine, name, asked, again, memory, way, how)
        text = report(again, f"{name.capitalize()}, after the change", _NONE, f"{stamp()} · greedy")
        (folder / "report.md").write_text(text, "utf-8")
        print(text)


def _documents(asked: Sequence[Page], *, changed: bool) -> list[tuple[str, str]]:
    return [one for page in asked for one in page.documents(changed)]


def _fill(engine: Engine, name: str, asked: Sequence[Page], file: AnswerFile, folder: Path) -> None:
    """Let a memory fill with runs on the documents as they were."""
    documents = _documents(asked, changed=False)
    answers: Answers = (
        Agent(engine, documents, must_look=True)
        if name == "agent"
        else QueryEngine(engine, documents)
    )
    by_question = {page.question: page for page in asked}

    def solved(question: str, answer: str) -> bool:
        return by_question[question].is_right_before(answer)

    with KVLogMemory(folder) as memory:
        memory.attach(engine)
        for page in track(asked, description="first"):
            if (name_of(engine), "first", page.id) in file:
                continue
            answer, figures = answers(page.question, Memory(memory, judge=solved))
            file.add(
                Answered(
                    model=name_of(engine),
                    way="first",
                    id=page.id,
                    kind=page.kind,
                    answer=answer,
                    right=page.is_right_before(answer),
                    **figures,
                )
            )
        memory.flush()


def _ask_again(
    engine: Engine,
    name: str,
    asked: Sequence[Page],
    file: AnswerFile,
    filled: Path,
    way: str,
    how: _Way,
) -> None:
    """Ask the same of the documents as they are now, with a memory of this way's own."""
    documents = _documents(asked, changed=True)
    answers: Answers = (
        Agent(engine, documents, must_look=how.must_look)
        if name == "agent"
        else QueryEngine(engine, documents, how.placement)
    )
    with tempfile.TemporaryDirectory() as folder, _copy(filled, Path(folder), how) as memory:
        memory.attach(engine)
        if how.told:
            memory.sources_changed([page.id for page in asked if page.later is not None])
        memory.flush()
        given = Memory(memory, how.as_text, how.by_step) if how.with_memory else None
        for page in track(asked, description=way):
            if (name_of(engine), way, page.id) in file:
                continue
            answer, figures = answers(page.question, given)
            right, outdated = page.judge(answer)
            file.add(
                Answered(
                    model=name_of(engine),
                    way=way,
                    id=page.id,
                    kind=page.kind,
                    answer=answer,
                    right=right,
                    outdated=outdated,
                    **figures,
                )
            )


def _copy(filled: Path, folder: Path, how: _Way) -> KVLogMemory:
    """Open a copy of a memory; the runs of one way shall not be seen in another."""
    if not how.unknown:
        return KVLogMemory(shutil.copytree(filled, folder / "memory"))
    memory = KVLogMemory(folder / "memory")
    with KVLogMemory(filled) as source:
        for log in source.store.ledger.info(outcomes=["success"]):
            metadata = without(log.trace.metadata, SOURCES, VERDICT)
            update = {"metadata": metadata, "outcome": "success"}
            memory.add(log.trace.model_copy(update=update))
    return memory


if __name__ == "__main__":
    main()
