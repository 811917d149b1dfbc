"""Measurements whose answers must say something: what is asked, given, counted and kept."""

from __future__ import annotations

import json

import pytest
from langchain_core.messages import HumanMessage

from benchmarks import facts
from benchmarks.asked import Answered, AnswerFile, Asked, ask, report, says
from benchmarks.changed import __main__ as changed
from benchmarks.changed.documents import pages
from benchmarks.facts import Case, older_objects
from benchmarks.recall import answers as recalled
from benchmarks.recall.cases import own_cases, rows
from lag_integrations import Engine
from lag_integrations.errors import EvaluationError
from lag_integrations.langchain import LAGChatModel
from tests.fake_engine import calls


def answered(way: str, id: str, **fields) -> Answered:
    known = {"kind": "a", "answer": "", "right": True, "computed_tokens": 10, "injected_tokens": 2}
    return Answered(model="m", way=way, id=id, seconds=1.0, **{**known, **fields})


@pytest.fixture
def asking(monkeypatch, puppet):
    """Runs a measurement's command with the puppet for a model."""

    def run(command, *arguments: str):
        monkeypatch.setattr(Engine, "load", lambda *args, **kwargs: puppet)
        monkeypatch.setattr("sys.argv", ["x", *map(str, arguments)])
        command.main()

    return run


def test_what_an_answer_says():
    assert says("It opens at 7:45.", "7:45")
    assert says("hmac-SHA256!", "sha-?256")
    assert not says("It costs 145 euros.", "45|14")


def test_answers_are_asked_once_and_kept(puppet, tmp_path):
    file = AnswerFile(tmp_path / "a" / "answers.jsonl")
    puppet.says("Lima.")
    question = Asked("q", "kind", [HumanMessage("?")], lambda text: (text == "Lima.", None))
    model = LAGChatModel(puppet, temperature=0)
    for _ in range(2):
        ask(file, model, "plain", [question])
        file = AnswerFile(tmp_path / "a" / "answers.jsonl")
    (one,) = file
    assert len(puppet.prompts) == 1
    assert (one.answer, one.right, one.kind, one.calls, one.logs) == ("Lima.", True, "kind", 1, 0)
    assert one.computed_tokens > 0


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(EvaluationError, match="no record of this evaluation"):
        AnswerFile(tmp_path / "answers.jsonl")


def test_a_half_written_line_is_cut_off(tmp_path):
    line = answered("w", "1").model_dump_json()
    (tmp_path / "answers.jsonl").write_text(line + "\n" + line[:20])
    assert [one.id for one in AnswerFile(tmp_path / "answers.jsonl")] == ["1"]


def test_the_report_counts_and_compares():
    found = [
        *(answered("none", str(n), right=n < 1, outdated=False) for n in range(4)),
        *(answered("kv", str(n), right=n < 3, outdated=n == 3, logs=1) for n in range(4)),
        answered("none", "u", kind="b", right=None),
    ]
    text = report(found, "Title", "none", "today")
    lines = [line for line in text.splitlines() if line.startswith("| m ")]
    assert "**Title: a**" in text
    assert "**Title: all**" not in text, "of the rest, nobody can know what is right"
    assert [line.split(" | ")[1:4] for line in lines[:2]] == [
        ["none", "4", "25.0 [0.0, 75.0]"],
        ["kv", "4", "75.0 [25.0, 100.0]"],
    ]
    assert "+50.0 [" in lines[1]
    assert "25.0 [0.0, 75.0] | 100.0 |" in lines[1], "outdated, and given a log"
    assert text.endswith("today\n")


def test_every_question_on_a_run_is_settled_by_it():
    runs = own_cases().logs
    asked = list(rows("asked.jsonl", recalled._Question))
    assert len(asked) == len({one.log for one in asked}) == 30
    for one in asked:
        assert says(runs[one.log].last_response, one.answer), one


@pytest.mark.slow
def test_recalled_runs(asking, puppet, tmp_path):
    puppet.says("45 days, I think.")
    asking(recalled, "--out", tmp_path)
    found = list(AnswerFile(tmp_path / "answers.jsonl"))
    assert len(found) == 3 * 45
    given = {(one.way, one.kind): 0 for one in found}
    for one in found:
        given[one.way, one.kind] += bool(one.logs)
    assert given["no logs", "a run fits"] == given["KV", "none fits"] == 0
    assert given["KV", "a run fits"] == given["text", "a run fits"] >= 27
    assert {one.id for one in found if one.right} == {"faq-01"}
    assert "none fits" in (tmp_path / "answers.md").read_text()


def test_what_older_facts_say():
    told = ["The capital of Peru is Lima.", "The capital of Chile is Santiago."]
    told += ["The capital of Peru is Cusco.", "The capital of Bolivia is Cusco."]
    case = Case("What is the capital of Peru?", ("Cusco",), ("Lima",))
    assert tuple(older_objects(told, case.question, case.answers)) == case.older
    assert case.judge("It is Cusco.") == (True, False)
    assert case.judge("It is Lima.") == (False, True)
    assert case.judge("No idea.") == (False, False)
    assert Case("", ("Cusco",), ()).judge("Lima") == (False, None)


def test_facts_that_later_ones_replace(asking, puppet, tmp_path):
    folder = tmp_path / "data" / "facts"
    folder.mkdir(parents=True)
    told = ["The capital of Peru is Lima.", "Jo plays chess.", "The capital of Peru is Cusco."]
    told = ["Here is a list of facts:", *(f"{n}. {fact}" for n, fact in enumerate(told)), ""]
    document = {"context": "\n".join(told), "questions": ["What is the capital of Peru?"]}
    (folder / facts._FILE).write_text(json.dumps({**document, "answers": [["Cusco"]]}))
    puppet.says("Cusco")
    asking(facts, "--data", tmp_path / "data", "--out", tmp_path / "out")
    found = {one.way: one for one in AnswerFile(tmp_path / "out" / "answers.jsonl")}
    assert {one.kind for one in found.values()} == {"told otherwise before"}
    assert [way for way, one in found.items() if one.logs] == ["KV", "text"]
    assert "1. Jo plays chess." in puppet.prompts[-1], "all facts stand in the last way's prompt"
    assert "Jo plays chess" not in puppet.prompts[0]


def test_the_handbook():
    asked = pages()
    assert len({page.id for page in asked}) == len({page.question for page in asked}) == 60
    assert sum(page.later is not None for page in asked) == 40
    for page in asked:
        (_, before), more = page.documents(changed=False)
        (_, after), same = page.documents(changed=True)
        assert more == same
        assert page.is_right_before(before)
        assert page.judge(after) == (True, None if page.later is None else False)
        assert page.later is None or page.judge(before) == (False, True)


@pytest.mark.slow
def test_documents_that_change(asking, puppet, tmp_path):
    """A model that says what the documents say is given the logs of unchanged documents only."""
    asked = pages()[::20]
    assert [page.kind for page in asked] == ["changed", "changed", "unchanged"]

    def from_documents(prompt: str) -> str:
        asked_now = prompt.rpartition("<|im_start|>user")[2]
        for page in asked:
            for is_changed in (True, False):
                text = page.documents(is_changed)[0][1]
                if page.question in prompt and text in asked_now:
                    return text
        return calls(
            "search_handbook", query=next(p.question for p in asked if p.question in prompt)
        )

    def at_first(prompt: str) -> str:
        answer = from_documents(prompt)
        return "I do not know." if asked[1].documents(False)[0][1] == answer else answer

    puppet.says(at_first)
    asking(changed, "--questions", "3", "--out", tmp_path)
    for name in ("query_engine", "agent"):
        first = list(AnswerFile(tmp_path / name / "first.jsonl"))
        assert [one.right for one in first] == [True, False, True], name
        again = list(AnswerFile(tmp_path / name / "again.jsonl"))
        assert all(one.right and not one.outdated for one in again), name
        logs = {(one.way, one.id): one.logs for one in again}
        assert [logs["KV", page.id] for page in asked] == [0, 0, 1], name
        assert [logs["no memory", page.id] for page in asked] == [0, 0, 0], name
        assert "after the change" in (tmp_path / name / "report.md").read_text()
        if name == "query_engine":
            assert [logs["KV, sources unknown", page.id] for page in asked] == [1, 0, 1]
        else:
            assert [logs["KV, told of the change", page.id] for page in asked] == [0, 0, 1]
