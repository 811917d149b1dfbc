"""The benchmark of recall, with the packaged embedder."""

from __future__ import annotations

import json
import sys

from benchmarks.recall import __main__ as benchmark
from benchmarks.recall import benchmark as ways
from benchmarks.recall.benchmark import ONE_VECTOR, SHIPPED
from benchmarks.recall.cases import Cases, from_facts, own_cases
from lag_integrations.evaluation.recall.queries import is_held_out
from lag_integrations.store.relevance.model import Relevance
from tests.conftest import qa
from tests.evaluation.test_recall import BIKES, FACTS, FOLLOW_UP


def test_the_cases_of_our_own():
    cases = own_cases()
    assert (len(cases.logs), len(cases.queries)) == (84, 370)
    assert {query.log for query in cases.queries} - {None} <= set(cases.logs)
    turn = cases.logs["talk-01-2"]
    assert turn.task == "And how much does it cost?"
    assert [message.role for message in turn.earlier] == ["user", "assistant"]
    held_out = sum(is_held_out(query, 3) for query in cases.queries)
    assert 0.25 < held_out / len(cases.queries) < 0.42


def test_a_question_made_of_facts():
    facts = [("director of Solaris", "Tarkovsky"), ("place of birth of Tarkovsky", "Zavrazhye")]
    assert from_facts(facts) == "place of birth of (director of Solaris)"
    both = [("Who made A?", "Ann"), ("Who made B?", "Bob"), ("Are Ann and Bob kin?", "no")]
    assert from_facts(both) == "Are (Who made A) and (Who made B) kin"
    assert from_facts(both[:2]) == "Who made A and Who made B"


def test_the_benchmark_compares_ways(tmp_path, monkeypatch):
    cases = Cases()
    for number, (task, response) in enumerate(FACTS.items()):
        cases.logs[str(number)] = qa(task, response)
        cases.ask("verbatim", task, str(number))
    number = str(list(FACTS).index(BIKES))
    cases.ask("follow-up", FOLLOW_UP["query"], number, before=FOLLOW_UP["before"])
    cases.ask("unrelated", "Why do cats purr?", None)
    monkeypatch.setattr(benchmark, "own_cases", lambda: cases)
    monkeypatch.setattr(benchmark, "public_cases", lambda data: Cases())
    monkeypatch.setattr(sys, "argv", ["recall", "--data", "x", "--out", str(tmp_path)])
    monkeypatch.setattr(ways, "measure", lambda *_, **__: Relevance(-4.0, 8.0, 0.0))  # fast
    benchmark.main()
    document = json.loads((tmp_path / "recall.json").read_text("utf-8"))
    assert document["about"].startswith("14 queries to 12 logs, at most 3 recalled; 20")
    recalled = {
        (way, row["kind"]): row["recalled"]["mean"]
        for part in document["parts"].values()
        for way, rows in part.items()
        for row in rows
        if row["recalled"] is not None
    }
    assert recalled[SHIPPED, "verbatim"] == 1
    assert recalled[SHIPPED, "follow-up"] == 1
    assert recalled["as shipped, without before", "follow-up"] == 0
    assert recalled[ONE_VECTOR, "follow-up"] == 0
    told = (tmp_path / "recall.md").read_text("utf-8")
    assert "**All kinds, tuned on**" in told
    assert f"| {ONE_VECTOR} | " in told
