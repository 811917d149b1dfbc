"""`kvlog eval --recall`, with the packaged embedder."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from lag_integrations import KVLogMemory
from lag_integrations.cli import app
from lag_integrations.evaluation.recall.figures import by_kind
from lag_integrations.evaluation.recall.queries import RecallQuery, is_held_out
from lag_integrations.evaluation.recall.searches import Searched
from tests.conftest import qa

FACTS = {
    "What is the code of the vault in Lima?": "It is 7741.",
    "What does the Ostrava ferry carry?": "Bees, in white boxes.",
    "Rental conditions of the Tern Road cargo bikes": "Cargo bikes cost 21 euros a day.",
    "How do I book the mirror studio at Aldergate?": "Through the form at the desk.",
    "On-call plan of the Farrowline parcel team": "Mette until Sunday, then Jonas.",
    "Rate limit of the Gilder payroll API": "It allows 40 requests a minute.",
    "Lost laptop: what staff has to do": "Call the desk at 4410 at once.",
    "Why does the night build of the atlas fail?": "The tile cache is empty.",
    "Write a toast for Ingrid's birthday": "To Ingrid, who mends everything!",
    "How is the dough for rye bread made?": "With sourdough, a day before.",
    "Which trees stand in the park of Sandvik?": "Limes and two old cedars.",
    "Translate the menu into Finnish": "Lohikeitto, ruisleipä, mustikkapiirakka.",
}
BIKES = "Rental conditions of the Tern Road cargo bikes"
BREAD = "How is the dough for rye bread made?"
FOLLOW_UP = {
    "query": "And how much does it cost?",
    "before": "I would like a cargo bike of the Tern Road hub.",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of a dozen logs, and their ids by task."""
    folder = tmp_path_factory.mktemp("recall") / "store"
    with KVLogMemory(folder) as memory:
        ids = memory.add_many(qa(*fact, outcome="success") for fact in FACTS.items())
        memory.embed_pending()
    return folder, dict(zip(FACTS, ids, strict=True))


@pytest.fixture
def questions(tmp_path):
    """Writes queries to a file."""

    def write(*lines):
        path = tmp_path / "questions.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("\n".join(texts), "utf-8")
        return path

    return write


def kvlog(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def means(document, part="all queries"):
    """The means of each kind."""
    return {
        row["kind"]: {name: value["mean"] for name, value in row.items() if isinstance(value, dict)}
        for row in document["queries"][part]
    }


def test_it_says_what_a_store_recalls(store, questions):
    folder, ids = store
    path = questions(
        *({"query": task, "log": log[:8], "kind": "again"} for task, log in ids.items()),
        "",
        {"query": "Is there a rate limit of Gilder's API?", "log": ids[BREAD], "kind": "odd"},
        {"query": "Why do cats purr?", "log": None, "kind": "none"},
        {"query": "Which trees stand in the park?", "log": None, "kind": "none"},
        {**FOLLOW_UP, "log": ids[BIKES]},
    )
    command = ("eval", "--recall", folder, "--questions", path)
    done = kvlog(*command, "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert (document["logs"], document["k"]) == (12, 3)
    assert document["floor"] == "a relevance of 0.5"
    found = means(document)
    assert list(found) == ["again", "odd", "none", "all"]  # without a kind, among all only
    right = {"recall_at_1": 1, "recall_at_3": 1, "recalled": 1, "foreign": 0, "any_foreign": 0}
    assert found["again"] == right
    assert found["odd"] == {name: 1 - value for name, value in right.items()}
    assert found["none"] == {"false_recall": 0.5}
    assert found["all"]["recalled"] == pytest.approx(13 / 14)
    assert found["all"]["foreign"] == pytest.approx(1 / 14)
    row = document["queries"]["all queries"][0]
    assert row["queries"] == 12
    assert row["false_recall"] is None
    assert 0.5 < row["recalled"]["low"] < row["recalled"]["high"] == 1

    told = kvlog(*command).stdout.splitlines()
    assert told[0].startswith("16 queries to 12 logs; at most 3 are recalled, from a relevance")
    (again,) = [line for line in told if line.startswith("again")]
    assert again.split()[1:4] == ["12", "100.0", "[73.5,"]


@pytest.mark.parametrize(
    ("options", "recalled"), [((), 1), (("--min-score", 1), 0), (("--min-relevance", 1), 0)]
)
def test_a_floor_keeps_logs_out_but_changes_nothing_about_what_is_nearest(
    store, questions, options, recalled
):
    folder, ids = store
    path = questions(
        {"query": "The Tern Road cargo bikes' rental terms", "log": ids[BIKES], "kind": "near"},
        {"query": "How much is a bicycle?", "log": ids[BIKES], "kind": "far"},
    )
    done = kvlog("eval", "--recall", folder, "--questions", path, "--json", *options)
    found = means(json.loads(done.stdout))
    assert (found["near"]["recalled"], found["near"]["recall_at_1"]) == (recalled, 1)
    assert (found["far"]["recalled"], found["far"]["recall_at_1"]) == (0, 1)


def test_what_was_said_before_finds_a_follow_up(store, questions):
    folder, ids = store
    alone = {"query": FOLLOW_UP["query"], "log": ids[BIKES], "kind": "alone"}
    path = questions({**FOLLOW_UP, "log": ids[BIKES], "kind": "before"}, alone)
    done = kvlog("eval", "--recall", folder, "--questions", path, "--json")
    found = means(json.loads(done.stdout))
    assert (found["before"]["recalled"], found["before"]["recall_at_1"]) == (1, 1)
    assert (found["alone"]["recalled"], found["alone"]["recall_at_1"]) == (0, 0)


def test_some_queries_are_held_out(store, questions):
    folder, ids = store
    path = questions(*({"query": task, "log": log} for task, log in ids.items()))
    command = ("eval", "--recall", folder, "--questions", path, "--json", "--held-out", 3)
    parts = json.loads(kvlog(*command).stdout)["queries"]
    counts = {part: rows[-1]["queries"] for part, rows in parts.items()}
    out = sum(is_held_out(RecallQuery(query=task, log=None), 3) for task in FACTS)
    assert counts == {"tuned on": 12 - out, "held out": out}
    assert 0 < out < 12


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"query": "Why?"', "line 2: not JSON"),
        ('{"query": "Why?"}', "line 2 is not as expected: log: Field required"),
        ('{"query": " ", "log": null}', "line 2 is not as expected: query"),
        ('{"query": "Why?", "log": null, "befor": "x"}', "befor: Extra inputs"),
        ('{"query": "Why?", "log": "ffff0000"}', "line 2: There is no log ffff0000"),
        ('{"query": "Why?", "log": "ff"}', "line 2: 'ff' is too short"),
    ],
)
def test_a_bad_line_is_named(store, questions, line, told):
    path = questions({"query": "Why?", "log": None}, line)
    done = kvlog("eval", "--recall", store[0], "--questions", path)
    assert done.exit_code == 1
    assert told in " ".join(done.output.split())
    assert "questions.jsonl" in done.output


def test_files_and_stores_that_are_not_there(store, questions, tmp_path):
    for path in (tmp_path / "no.jsonl", questions("")):
        done = kvlog("eval", "--recall", store[0], "--questions", path)
        assert done.exit_code == 1
        assert path.name in done.output
    path = questions({"query": "Why?", "log": None})
    done = kvlog("eval", "--recall", tmp_path / "typo", "--questions", path)
    assert done.exit_code == 1
    assert "There is no folder" in done.output
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--recall", "x"), "--recall needs --questions"),
        (("--recall", "x", "--questions", "y", "--out", "z"), "no --data, --dataset or --out"),
        (("--questions", "y"), "go with --recall"),
        (("--data", "x", "--dataset", "jsonl", "--out", "z", "--json"), "go with --recall"),
        (("--data", "x"), "needs --data, --dataset and --out"),
        ((), "needs --data, --dataset and --out"),
    ],
)
def test_what_does_not_go_together_is_wrong_usage(arguments, told):
    done = kvlog("eval", *arguments)
    assert done.exit_code == 2
    words = " ".join(done.output.replace("│", " ").split())
    assert told in words


def test_foreign_logs_are_counted():
    query = RecallQuery(query="Why?", log="a")
    results = [
        (query, Searched(("a", "b", "c"), ("a", "b", "c"))),
        (query, Searched(("b", "a", "c"), ("b",))),
        (query, Searched(("b", "c", "d"), ())),
        (query, Searched(("a", "b", "c"), ("a",))),
    ]
    (found,) = by_kind(results, most=3)
    assert (found.recall_at_1.mean, found.recall_at_3.mean) == (0.5, 0.75)
    assert (found.recalled.mean, found.foreign.mean, found.any_foreign.mean) == (0.5, 0.75, 0.5)
    assert found.false_recall is None
