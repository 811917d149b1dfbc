"""What recalled runs are good for: ``python -m benchmarks.recall.answers``.

Thirty runs of the benchmark, each asked for in other words by a question that its answer settles,
and fifteen questions that no run settles; without logs, with what is recalled as KV, and as text.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage
from pydantic import BaseModel

from benchmarks.asked import AnswerFile, Asked, ask, report, says
from benchmarks.recall.cases import own_cases, rows
from lag_integrations import KVLogMemory, packaged
from lag_integrations.engine.engine import Engine
from lag_integrations.evaluation.machine import stamp
from lag_integrations.langchain import LAGChatModel

_NONE = "no logs"
_WAYS: dict[str, dict[str, Any]] = {
    _NONE: {"k": 0},
    "KV": {},
    "text": {"logs_as_text": True},
}
_SYSTEM = "Answer in one short sentence. If you do not know, say so."
_UNRELATED = 15
_MAX_TOKENS = 48


class _Question(BaseModel):
    log: str
    question: str
    answer: str


def main() -> None:
    """Ask, print a table and write it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recall.answers", description=__doc__
    )
    parser.add_argument("--model", help="packaged model, hub id or folder; SmolLM2 by default")
    parser.add_argument("--out", type=Path, default=Path("results/recall"), help="a folder")
    arguments = parser.parse_args()
    file = AnswerFile(arguments.out / "answers.jsonl")
    cases, asked = own_cases(), list(rows("asked.jsonl", _Question))
    unrelated = [query for query in cases.queries if query.kind.startswith("unrelated, near")]
    questions = [_asked(one) for one in asked]
    questions += [_nothing_fits(one.query) for one in islice(unrelated, _UNRELATED)]
    engine = Engine.load(packaged.resolve(arguments.model))
    with tempfile.TemporaryDirectory() as folder, KVLogMemory(folder) as memory:
        memory.attach(engine)
        memory.add_many(cases.logs[one.log] for one in asked)
        memory.flush()
        model = LAGChatModel(engine, memory=memory, temperature=0, max_tokens=_MAX_TOKENS)
        for way, settings in _WAYS.items():
            ask(file, model, way, questions, **settings)
    about = f"{stamp()} · greedy, at most {_MAX_TOKENS} tokens"
    text = report(file, f"Asked in other words, {len(asked)} runs", _NONE, about)
    (arguments.out / "answers.md").write_text(text, "utf-8")
    print(text)


def _asked(of: _Question) -> Asked:
    prompt = [SystemMessage(_SYSTEM), HumanMessage(of.question)]
    return Asked(of.log, "a run fits", prompt, lambda answer: (says(answer, of.answer), None))


def _nothing_fits(query: str) -> Asked:
    # Nobody can know: what counts is that nothing is given, so that nothing changes.
    prompt = [SystemMessage(_SYSTEM), HumanMessage(query)]
    return Asked(query, "none fits", prompt, lambda answer: (None, None))


if __name__ == "__main__":
    main()
