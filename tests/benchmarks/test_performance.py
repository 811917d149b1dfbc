"""The harness of `make bench`: what it measures is said as it was measured."""

from __future__ import annotations

import json
import sys
from math import nan

import pytest

from benchmarks.performance import __main__ as bench
from benchmarks.performance.capture import capture
from benchmarks.performance.decoding import decoding
from benchmarks.performance.importing import importing
from benchmarks.performance.memory_use import memory_use
from benchmarks.performance.paired import Figure, Spread, figures, interleaved
from benchmarks.performance.recall import recall
from benchmarks.performance.results import changes, markdown, read, save
from benchmarks.performance.tasks import Task
from benchmarks.performance.weights import weights
from lag_integrations import Engine
from lag_integrations.engine.token_selection import LastTurn
from lag_integrations.traces.message import Message


def test_ways_take_turns_and_the_first_round_only_warms_up():
    order: list[str] = []
    values = iter(range(100))

    def way(name: str):
        def measured() -> float:
            order.append(name)
            return float(next(values))

        return measured

    taken = interleaved(2, {name: way(name) for name in ("one", "other")})
    assert order == ["one", "other", "other", "one", "one", "other"]
    assert taken == {"one": [3.0, 4.0], "other": [2.0, 5.0]}
    order.clear()
    fewer = interleaved(9, {"one": way("one")}, lambda: len(order) >= 3)
    assert [len(values) for values in fewer.values()] == [2], "the round of the warm-up, and two"


def test_ratios_are_of_the_same_round():
    taken = {"bare": [1.0, 10.0, 100.0], "slow": [2.0, 20.0, 300.0]}
    bare, slow = figures("suite", {"k": 3}, taken, ("bare", "unknown"))
    assert bare.ratios == {}
    assert slow.value == Spread(20.0, 11.0, 160.0)
    assert slow.ratios == {"bare": Spread(2.0, 2.0, 2.5)}
    assert slow.key == ("suite", "k 3", "slow")
    _, now_and_then = figures("suite", {}, {"bare": [1.0, 2.0], "rare": [nan, 8.0]}, ("bare",))
    assert now_and_then.ratios == {"bare": Spread(4.0, 4.0, 4.0)}
    assert list(figures("suite", {}, {"never": [nan, nan]}, ())) == []


def figure(low: float, high: float, **setting: int) -> Figure:
    ratio = Spread((low + high) / 2, low, high)
    return Figure("first token, s", setting, "KV", Spread(1, 1, 1), {"bare": ratio})


def test_a_run_is_read_back_and_compared(tmp_path):
    before = [figure(1.0, 1.2, tokens=128), figure(2.0, 2.2, tokens=256)]
    save(tmp_path / "new" / "bench.json", {"machine": "a"}, before)
    about, again = read(tmp_path / "new" / "bench.json")
    assert (about, again) == ({"machine": "a"}, before)
    now = [figure(1.1, 1.3, tokens=128), figure(1.0, 1.9, tokens=256), figure(9, 9, tokens=512)]
    table = changes(again, now)
    assert [list(column.cells) for column in table.columns] == [
        ["first token, s"],
        ["tokens 256"],
        ["KV"],
        ["/ bare"],
        ["2.10 [2.00, 2.20]"],
        ["1.45 [1.00, 1.90]"],
    ]
    assert "| tokens 128 | KV | 1 | 1.10 [1.00, 1.20] |" in markdown(before)


def test_tasks_are_as_long_as_asked_for_and_no_two_alike(engine):
    task, other = (Task.make(engine, number, logs=3, tokens=384) for number in range(2))
    for trace in task.traces:
        kept = engine.encodable(trace, LastTurn()).keep
        assert abs(len(kept) - 128) < 12
        assert abs(len(engine.encodable(trace)) - 256) < 40
    assert not {str(trace.messages) for trace in task.traces} & {
        str(trace.messages) for trace in other.traces
    }
    asked = [len(engine.tokens_of(task.question(way).text)) for way in ("one", "another", "third")]
    assert max(asked) - min(asked) <= 4
    again = Task.make(engine, 0, logs=3, tokens=600)
    words = {one.question(way).text for one in (task, other, again) for way in ("one", "another")}
    assert len(words) == 6
    for text in words:  # what they begin with alike is the system message and the turn's header
        shared = engine.generate([Message(role="user", content=text)], max_new_tokens=1)
        head = engine.chat_template.render([Message(role="user", content=text)]).head
        assert shared.reused_tokens <= head + 8


def test_a_run_with_real_parts(tmp_path, monkeypatch, capsys, small, embedder):
    monkeypatch.setattr(bench, "load_embedder", lambda: embedder)
    monkeypatch.setattr(bench.Engine, "load", lambda *_, **__: small)
    command = ["--rounds", "1", "--tokens", "128", "--logs", "--suites", "first-token", "loading"]
    monkeypatch.setattr(sys, "argv", ["bench", *command, "--out", str(tmp_path / "out")])
    bench.main()
    printed = capsys.readouterr().out
    assert "first token, s" in printed
    assert "loading three segments, ms" in printed
    found = json.loads((tmp_path / "out" / "bench.json").read_text())
    ways = {row["way"] for row in found["figures"] if row["suite"] == "first token, s"}
    assert {"bare prompt", "KV, in memory", "KV, from disk", "the same as text"} <= ways
    assert "KV, the paper's way" in ways
    assert found["about"]["model"].endswith("float32")
    assert (tmp_path / "out" / "first_token.svg").read_text().startswith("<?xml")
    assert "**first token, s**" in (tmp_path / "out" / "bench.md").read_text()
    again = ["--compare", str(tmp_path / "out" / "bench.json"), "--suites", "loading"]
    monkeypatch.setattr(sys, "argv", ["bench", *command[:5], *again, "--out", str(tmp_path / "b")])
    bench.main()
    assert "Changed since" in capsys.readouterr().out


@pytest.mark.slow
def test_the_other_suites_with_real_parts(engine, embedder):
    bare = Engine(engine.model, engine.tokenizer, prefix_cache_bytes=0)
    found = [
        *recall(embedder, 1, 20),
        *decoding(bare, 1, 4, [2]),
        *capture(engine, embedder, 1),
        *importing(engine, embedder, 1, 2),
        *memory_use(engine, embedder, 1, 10),
        *weights(engine, 1, 4),
    ]
    by_way = {(one.suite, one.way): one for one in found}
    assert (
        by_way["a run of three calls, s", "of it, in the handler"].ratios["captured"].median < 0.1
    )
    assert by_way["tokens read to encode a run", "with what was generated kept"].value.median <= 3
    assert {way for suite, way in by_way if suite.startswith("import")} == {
        "one by one, each read whole",
        "one by one",
        "together",
    }
    assert all(one.value.median > 0 for one in found)
    if sys.platform == "linux":
        assert ("memory after so many requests, MB", "after 10") in by_way


def test_what_is_not_there_is_said(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["bench", "--compare", str(tmp_path / "none.json")])
    with pytest.raises(SystemExit):
        bench.main()
    assert "There is no" in capsys.readouterr().err


def test_a_suite_that_is_not_known_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--suites", "speed"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "invalid choice: 'speed'" in capsys.readouterr().err
