"""Tool calls on BFCL: its questions as tools, what is answered, and what counts as right."""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import Any

import pytest

from benchmarks.bfcl import __main__ as command
from benchmarks.bfcl.answers import Call, Records
from benchmarks.bfcl.cases import CATEGORIES, Case, is_even, read_cases
from benchmarks.bfcl.scores import is_right, rows
from lag_integrations import Engine, packaged
from lag_integrations.engine.tools import HERMES
from lag_integrations.errors import EvaluationError
from lag_integrations.evaluation.tool_tasks.bfcl import as_tool
from tests.engine.tools.parsing import parse

installed = pytest.mark.skipif(
    importlib.util.find_spec("bfcl_eval") is None,
    reason="bfcl-eval is not installed; `make bfcl` installs it",
)


def test_functions_become_tools_of_openais_form():
    described = {
        "name": "geo.find.place",
        "description": "Finds it.",
        "parameters": {
            "type": "dict",
            "required": ["at"],
            "properties": {
                "at": {"type": "tuple", "items": {"type": "float"}, "description": "Where."},
                "type": {"type": "string", "enum": ["a", "b"], "default": "a"},
                "more": {"type": "dict", "properties": {"value": {"type": "any"}}},
                "rows": {"type": "array", "items": {"type": "array", "items": {"type": "dict"}}},
            },
        },
    }
    before = json.dumps(described)
    assert as_tool(described) == {
        "type": "function",
        "function": {
            "name": "geo_find_place",
            "description": "Finds it.",
            "parameters": {
                "type": "object",
                "required": ["at"],
                "properties": {
                    "at": {"type": "array", "items": {"type": "number"}, "description": "Where."},
                    "type": {"type": "string", "enum": ["a", "b"], "default": "a"},
                    "more": {"type": "object", "properties": {"value": {}}},
                    "rows": {
                        "type": "array",
                        "items": {"type": "array", "items": {"type": "object"}},
                    },
                },
            },
        },
    }
    assert json.dumps(described) == before


def test_even_numbers():
    assert is_even("simple_python_12", "simple_python")
    assert is_even("live_simple_4-1-1", "live_simple")
    assert not is_even("live_simple_5-2-0", "live_simple")


def test_without_bfcl_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "bfcl_eval", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EvaluationError, match="--no-deps"):
        read_cases("multiple", 1)


def gold_calls(case: Case) -> list[tuple[str, dict[str, Any]]]:
    """Calls that are right: of each argument, the first value that it may have."""
    return [
        (name.replace(".", "_"), _args(args)) for call in case.gold for name, args in call.items()
    ]


def _args(gold: dict[str, Any]) -> dict[str, Any]:
    # Of an optional argument, "" and null say that it may be left out.
    given = {name: [one for one in may if one not in ("", None)] for name, may in gold.items()}
    return {name: _value(values[0]) for name, values in given.items() if values}


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return _args(value)
    return [_value(item) for item in value] if isinstance(value, list) else value


def written(calls: list[tuple[str, dict[str, Any]]]) -> str:
    return "\n".join(json.dumps({"name": name, "arguments": args}) for name, args in calls)


@installed
@pytest.mark.parametrize("category", CATEGORIES)
def test_gold_calls_are_read_and_right_and_others_are_not(category):
    cases = read_cases(category, 40)
    assert len(cases) == 40
    assert all(is_even(case.id, category) for case in cases)
    for case in cases:
        gold = gold_calls(case)
        read = parse(HERMES, written(gold), case.tools)
        assert [(call.name, call.args) for call in read.calls] == gold, case.id
        calls = [Call(name=name, args=args) for name, args in gold]
        assert is_right(case, calls), case.id
        assert not is_right(case, [])
        assert not is_right(case, [*calls, calls[0]])
        assert not is_right(case, [call.model_copy(update={"name": "f"}) for call in calls])
        wrong = dict.fromkeys(calls[0].args, "quite another")
        assert not is_right(case, [Call(name=calls[0].name, args=wrong), *calls[1:]])


@installed
def test_what_is_answered_is_written_down_once_and_reported(puppet, monkeypatch, tmp_path, capsys):
    """A model that writes the right calls without marks, but to one question with them."""
    cases = [case for name in ("multiple", "parallel") for case in read_cases(name, 3)]
    marked = cases[0].id

    def answer(prompt: str) -> str:
        (case,) = [one for one in cases if one.messages[-1]["content"] in prompt]
        text = written(gold_calls(case))
        return f"<tool_call>\n{text}\n</tool_call>" if case.id == marked else text

    monkeypatch.setattr(packaged, "chat_model", lambda: tmp_path)
    monkeypatch.setattr(Engine, "load", lambda model: puppet)
    options = ["bfcl", "--categories", "multiple", "parallel", "--out", str(tmp_path / "out")]
    options += ["--batch", "2", "--number"]
    puppet.says(answer)
    for number in ("2", "3"):
        monkeypatch.setattr(sys, "argv", [*options, number])
        command.main()
    assert len(puppet.prompts) == 6, "what was answered is not asked again"
    records = list(Records(tmp_path / "out" / "records.jsonl"))
    assert {record.id for record in records} == {case.id for case in cases}
    assert all(record.text == answer(_asked(cases, record.id)) for record in records)
    found = {row.category: row for row in rows(cases, records)}
    assert list(found) == ["multiple", "parallel", "all"]
    shares = {
        name: (row.read.mean, row.right.mean, row.marked_read.mean, row.marked_right.mean)
        for name, row in found.items()
    }
    assert shares == {
        "multiple": (1, 1, pytest.approx(1 / 3), pytest.approx(1 / 3)),
        "parallel": (1, 1, 0, 0),
        "all": (1, 1, pytest.approx(1 / 6), pytest.approx(1 / 6)),
    }
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.count(f"| {tmp_path.name} |") == 3
    assert str(tmp_path) not in report
    assert "BFCL" in capsys.readouterr().out


def _asked(cases: list[Case], id: str) -> str:
    (case,) = [one for one in cases if one.id == id]
    return str(case.messages[-1]["content"])


def test_records_of_something_else_are_refused(tmp_path):
    (tmp_path / "records.jsonl").write_text('{"model": "x"}\n')
    with pytest.raises(EvaluationError, match="Remove it"):
        Records(tmp_path / "records.jsonl")
