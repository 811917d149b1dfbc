"""The benchmark's logs and queries: runs of our own, and of public data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from benchmarks.bfcl.cases import Talk, read_talks
from lag_integrations.evaluation.datasets import load
from lag_integrations.evaluation.datasets.react import load_traces
from lag_integrations.evaluation.gold import gold_trace
from lag_integrations.evaluation.recall.queries import RecallQuery
from lag_integrations.traces.message import Message
from lag_integrations.traces.trace import Trace

PUBLIC = 80
"""Runs of each of MuSiQue and 2Wiki."""
_ONE_TALK_IN = 5
"""Of how many of BFCL's tasks of several turns one is a run."""
_Row = TypeVar("_Row", bound=BaseModel)


@dataclass
class Cases:
    """Logs by names, and queries that name them.

    Attributes:
        logs: The logs.
        queries: The queries; of each the log is a name.
    """

    logs: dict[str, Trace] = field(default_factory=dict)
    queries: list[RecallQuery] = field(default_factory=list)

    def ask(self, kind: str, query: str, log: str | None, before: str | None = None) -> None:
        """Add a query."""
        self.queries.append(RecallQuery(query=query, log=log, before=before, kind=kind))


class _Run(BaseModel):
    id: str
    kind: str
    task: str
    steps: list[str]
    response: str
    paraphrases: tuple[str, str]


class _FollowUp(BaseModel):
    before: str
    query: str
    log: str


class _Conversation(BaseModel):
    id: str
    turns: tuple[tuple[str, str], tuple[str, str]]
    follow_ups: list[_FollowUp]


class _Unrelated(BaseModel):
    query: str
    near: bool


def own_cases() -> Cases:
    """Return 60 runs and 12 conversations of two turns, with queries.

    Runs come back verbatim, reworded, and told otherwise. Follow-ups say little without what was
    said before. What is unrelated comes as the first question, and after one that a run fits.
    """
    cases = Cases()
    runs = list(rows("runs.jsonl", _Run))
    for run in runs:
        cases.logs[run.id] = _trace([run.task, *run.steps, run.response])
        close, free = run.paraphrases
        cases.ask("verbatim", run.task, run.id)
        cases.ask("reworded", close, run.id)
        cases.ask("told otherwise", free, run.id)
    for talk in rows("conversations.jsonl", _Conversation):
        first, second = talk.turns
        turns = f"{talk.id}-1", f"{talk.id}-2"
        cases.logs[turns[0]] = _trace(first)
        cases.logs[turns[1]] = _trace(second, earlier=first)
        cases.ask("turn again", second[0], turns[1], before=first[0])
        for said in talk.follow_ups:
            cases.ask("follow-up", said.query, said.log, before=said.before)
    for number, other in enumerate(rows("unrelated.jsonl", _Unrelated)):
        cases.ask(f"unrelated, {'near' if other.near else 'far'}", other.query, None)
        before = runs[number % len(runs)].task
        cases.ask("unrelated, after a run", other.query, None, before=before)
    return cases


def public_cases(data: Path) -> Cases:
    """Return runs of public data, with queries.

    Of MuSiQue and 2Wiki, the gold traces of some questions, asked for by what they are made of. Of
    ReAct, real runs on HotpotQA, asked again verbatim. Of the formulas, one question each with its
    answer, asked for by another question. Of BFCL, tasks of several turns, each done in one run
    that ends with a long report; asked for by all that the user wanted, at once.

    Args:
        data: A folder with ``musique``, ``2wiki``, ``react`` and ``formula``.

    Raises:
        EvaluationError: Something is missing or malformed, or BFCL is not installed.
    """
    cases = Cases()
    for name in ("musique", "2wiki"):
        for question in load(name, data, limit=PUBLIC).seen:
            cases.logs[question.id] = gold_trace(question)
            cases.ask(name, from_facts(question.facts), question.id)
    for number, (trace, _) in enumerate(load_traces(data)):
        cases.logs[f"react-{number}"] = trace
        cases.ask("react", trace.task, f"react-{number}")
    formulas = load("formula", data)
    for question in formulas.seen:
        cases.logs[question.id] = question.log or gold_trace(question)
    for question in formulas.related:
        cases.ask("formula", question.text, question.log_of)
    for talk in read_talks(_ONE_TALK_IN):
        cases.logs[talk.id] = Trace.from_messages(list(_talk(talk)), outcome="success")
        cases.ask("bfcl", " ".join(talk.asked), talk.id)
    return cases


def _talk(talk: Talk) -> Iterator[Message]:
    """Yield the turns with their calls, and at the end a long report of all that was done."""
    for asked, calls in zip(talk.asked, talk.calls, strict=True):
        yield Message(role="user", content=asked)
        yield Message(role="assistant", content="\n".join(calls) or "Nothing is to be called.")
    done = (
        f"{number}. I called {', then '.join(calls)}, and it went through without an error."
        for number, calls in enumerate(talk.calls, 1)
        if calls
    )
    yield Message(role="assistant", content="\n".join(("All of it is done:", *done)))


def joined(*parts: Cases) -> Cases:
    """Return several cases as one."""
    found = Cases()
    for part in parts:
        found.logs |= part.logs
        found.queries += part.queries
    return found


def from_facts(facts: Sequence[tuple[str, str]]) -> str:
    """Return a question put together of the sub-questions that it is made of.

    Each answer that a later sub-question names gives way to what it is the answer to: "place of
    birth of (director of Solaris)".

    Args:
        facts: Sub-questions and answers, in order.
    """
    told: dict[str, str] = {}  # by its answer, what nothing has referred to yet
    for asked, answer in facts:
        text = asked.rstrip("?. ")
        for known in sorted(told, key=len, reverse=True):
            parts = re.split(rf"(?<!\w){re.escape(known)}(?!\w)", text)
            if len(parts) > 1:
                text = f"({told.pop(known)})".join(parts)
        told[answer] = text
    return " and ".join(told.values())


def _trace(said: Iterable[str], earlier: Iterable[str] = ()) -> Trace:
    """Return a run: what the user said, and then the agent."""
    return Trace.from_messages(_messages(said), outcome="success", earlier=_messages(earlier))


def _messages(said: Iterable[str]) -> tuple[Message, ...]:
    return tuple(
        Message(role="assistant" if number else "user", content=text)
        for number, text in enumerate(said)
    )


def rows(name: str, kind: type[_Row]) -> Iterator[_Row]:
    """Yield the rows of a file of this package."""
    for line in files(__package__).joinpath(name).read_text("utf-8").split("\n"):
        if line:
            yield kind.model_validate_json(line)
