"""What a floor under the similarity of logs would have done."""

from __future__ import annotations

from lag_integrations.evaluation import report
from lag_integrations.evaluation.floors import FLOORS, floors
from lag_integrations.evaluation.records import Record
from lag_integrations.evaluation.results import summarize


def record(arm, key, right, score=None, **changes):
    fields = {
        "arm": arm,
        "question_id": key,
        "stratum": "seen",
        "exact_match": right,
        "f1": float(right),
        "answered_in": 1,
        "rounds": 1,
        "seconds": 1.0,
        "time_to_first_token": 0.1,
        "computed_tokens": 10,
        "injected_tokens": 5,
        "generated_tokens": 3,
        "stored_bytes": 100,
        "logs": () if score is None else ("log",),
        "scores": () if score is None else (score,),
    }
    return Record(**{**fields, **changes})


# Helped by a near log, harmed by a far one, and two that no log changes.
RIGHT = {"a": False, "b": True, "c": False, "d": True}
NONE = [record("none", key, right) for key, right in RIGHT.items()]
KV = [
    record("kv", "a", True, 0.95),
    record("kv", "b", False, 0.45),
    record("kv", "c", False, 0.65),
    record("kv", "d", True),
]


def by_question(records):
    return {one.question_id: one for one in records}


def test_below_a_floor_questions_are_answered_without_logs():
    found = {one.floor: one for one in floors(by_question(KV), by_question(NONE), -1.0)}
    assert list(found) == list(FLOORS)
    everything, half, all_but_best = found[-1.0], found[0.5], found[0.9]
    assert (everything.exact_match, everything.gained, everything.harmed) == (0.5, 0.25, 0.25)
    assert everything.abstained == 0.25
    assert (half.exact_match, half.gained, half.harmed) == (0.75, 0.25, 0.0)
    assert half.abstained == 0.5
    assert (all_but_best.exact_match, all_but_best.abstained) == (0.75, 0.75)


def test_a_log_at_the_floor_is_given():
    at = {"a": record("kv", "a", True, 0.5)}
    found = {one.floor: one.exact_match for one in floors(at, by_question(NONE), -1.0)}
    assert (found[0.5], found[0.6]) == (1.0, 0.0)


def test_nothing_is_known_of_floors_below_that_of_the_run():
    found = floors(by_question(KV), by_question(NONE), 0.5)
    assert [one.floor for one in found] == [0.5, 0.6, 0.7, 0.8, 0.9]


def test_runs_that_cannot_tell_have_no_floors():
    several = [record("kv", "a", True, logs=("x", "y"), scores=(0.9, 0.8))]
    long = [record("kv", "a", True, 0.9, rounds=2)]
    not_recalled = [record("kv", "a", True, logs=("x",))]
    for records in (several, long, not_recalled, []):
        assert floors(by_question(records), by_question(NONE), -1.0) == []


def test_the_report_shows_them_where_there_are_any(tmp_path):
    results = summarize([*NONE, *KV])
    assert list(results.floors) == ["kv"]
    assert "kv: with another floor" in report.markdown(results)
    report.html(results, {}, tmp_path / "report.html")
    assert "With another floor" in (tmp_path / "report.html").read_text("utf-8")
    report.html(summarize(NONE), {}, tmp_path / "report.html")
    assert "With another floor" not in (tmp_path / "report.html").read_text("utf-8")
