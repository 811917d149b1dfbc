"""Outcomes of logs, feedback on them, and changed sources."""

from __future__ import annotations

import pytest

from lag_integrations.errors import (
    LogNotFoundError,
)
from tests.conftest import qa
from tests.store.conftest import ids, shown
from tests.store.processes import numbered


def test_outcomes(open_store):
    with open_store() as memory:
        for outcome in ("success", "failure", "incomplete", "unknown"):
            memory.add(qa(f"Was it a {outcome} ?", "Yes.", outcome=outcome))
        memory.flush()
        usual = {log.trace.outcome for log in memory.recall("Was it a failure ?")}
        assert usual == {"success", "unknown"}
        (failed,) = memory.recall("Was it a failure ?", outcomes=["failure"])
        memory.add(failed.trace.model_copy(update={"outcome": "success"}))
        memory.flush()
        assert len(memory.recall("Was it a failure ?", outcomes=["success"])) == 2
        for less in ("unknown", "incomplete"):
            memory.add(failed.trace.model_copy(update={"outcome": less}))  # the verdict stays
        assert memory.recall("Was it a failure ?", outcomes=["failure"]) == []
        assert len(memory.recall("Was it a failure ?", outcomes=["success"])) == 2
        (stopped,) = memory.recall("Was it a failure ?", outcomes=["incomplete"])
        memory.add(stopped.trace.model_copy(update={"outcome": "unknown"}))  # it came to its end
        assert memory.recall("Was it a failure ?", outcomes=["incomplete"]) == []


def test_feedback(open_store):
    with open_store() as memory:
        good, bad = memory.add(numbered(1)), memory.add(numbered(2))
        memory.flush()
        memory.feedback([good, bad], helped=True)
        memory.feedback(bad, helped=False)
        assert set(ids(memory.recall("vault"))) == {good, bad}
        memory.feedback(bad, helped=False)
        assert ids(memory.recall("vault")) == [good]
        memory.flush()
        info = {log.id: log for log in memory.store.ledger.info()}
        assert (info[good].times_helped, info[good].times_harmed) == (1, 0)
        assert (info[bad].times_helped, info[bad].times_harmed) == (1, 2)
        assert (info[good].times_recalled, info[bad].times_recalled) == (2, 1)
        with pytest.raises(LogNotFoundError, match="nothing"):
            memory.feedback(["nothing", good], helped=True)
        assert memory.store.ledger.info([good])[0].times_helped == 2


def test_logs_of_changed_sources_wait_for_a_confirmation(open_store):
    with open_store() as memory, open_store(namespace="other") as other:
        traces = [shown(0, "a", "b"), shown(1, "b"), shown(2, "c"), shown(3, "c"), qa("four", "4")]
        zero, _, two, three, four = memory.add_many(traces)
        elsewhere = other.add(traces[0])
        memory.flush()
        other.flush()
        assert memory.sources_changed("b") == 2
        assert memory.sources_changed(["/c", "a-0", "b"]) == 4
        assert memory.sources_changed([]) == memory.sources_changed("4") == 0
        assert ids(memory.recall("question", k=9)) == [four]
        assert ids(other.recall("question")) == [elsewhere]
        memory.feedback(traces[0].id, outcome="success")
        memory.feedback(traces[1].id, outcome="unknown")
        memory.judge(two, "success")
        memory.add(traces[3])  # a run said it again
        memory.flush()
        assert set(ids(memory.recall("question", k=9))) == {zero, three, four}
        memory.sources_changed("a")  # once more
        assert set(ids(memory.recall("question", k=9))) == {three, four}
        assert memory.verify() == []


def given(memory, log, outcome, number):
    """Add runs into which a log was recalled."""
    asked = (f"{outcome} {place} of what {log} was for" for place in range(number))
    runs = [qa(task, "Done.", outcome=outcome, helped_by=(log,)) for task in asked]
    return memory.add_many(runs)


def test_logs_whose_runs_succeed_come_first(open_store):
    with open_store() as memory, open_store(namespace="other") as other:
        logs = memory.add_many(numbered(place) for place in range(1, 7))
        memory.flush()
        before = ids(memory.recall("vault", k=6))
        assert set(before) == set(logs)
        first, last = before[0], before[-1]
        given(other, first, "success", 9)  # is not theirs to say
        given(memory, first, "incomplete", 9)
        assert ids(memory.recall("vault", k=6)) == before
        given(memory, first, "failure", 3)
        (run, *_) = given(memory, last, "success", 3)
        # It comes from beyond the first few that are looked for.
        assert ids(memory.recall("vault", k=2)) == [last, before[1]]
        assert ids(memory.recall("vault", k=6))[-1] == first
        given(memory, first, "failure", 8)
        assert set(ids(memory.recall("vault", k=5))) == set(logs) - {first}
        found = {one.log.id: one for one in memory.explain("vault", k=6)}
        assert found[first].missed == ("runs that are given it fail",)
        assert (found[first].runs, found[last].runs) == ((0, 8), (3, 0))
        assert found[before[1]].runs is None
        memory.delete(run)
        assert memory.store.ledger.run_outcomes([last]) == {last: (2, 0)}


def test_useless_logs_take_no_places(open_store):
    with open_store() as memory:
        logs = memory.add_many(numbered(place) for place in range(1, 9))
        memory.flush()
        *others, last = ids(memory.recall("vault", k=8))
        for log in others:
            given(memory, log, "failure", 8)
        assert ids(memory.recall("vault", k=1)) == [last]
        given(memory, last, "failure", 8)
        # They are near enough, so that none of them has been missed.
        found = memory.search("vault", k=1, outcomes=["success", "unknown"])
        assert (found.logs, found.nearest_miss) == ([], None)
        assert set(logs) == {*others, last}


def test_only_what_somebody_judged_tells_of_the_logs_behind_it(open_store):
    with open_store() as memory:
        log = memory.add(numbered(1))
        trace = qa("Which vault?", "The first.", outcome="success", helped_by=(log,))
        (run,) = memory.add_own([trace], judged=False)  # as a capture says of what has ended

        def counted():
            return memory.store.ledger.run_outcomes([log]).get(log)

        assert counted() is None
        memory.judge(run, "failure")
        assert counted() == (0, 1)
        memory.judge(run, "unknown")
        assert counted() is None
        memory.feedback(trace.id, outcome="success")
        assert counted() == (1, 0)
        memory.judge(run, "failure")
        assert counted() == (1, 0)
        assert memory.store.ledger.info([log])[0].times_helped == 0


def test_what_a_judge_said_outlives_another_capture(open_store):
    """A capture infers a success of what has ended; it does not know better."""
    with open_store() as memory:
        trace = qa("Which vault?", "The first.", outcome="success")
        (run,) = memory.add_own([trace], judged=False)
        memory.judge(run, "failure")
        (again,) = memory.add_own([trace.model_copy(update={"id": "again"})], judged=False)
        assert again == run
        (log,) = memory.get([run])
        assert log.trace.outcome == "failure"
        memory.judge(run, "success")
        assert memory.get([run])[0].trace.outcome == "success"


def test_what_was_said_of_a_run_stays_with_the_logs_that_it_was_given(open_store):
    with open_store() as memory:
        first, second = memory.add_many([numbered(1), numbered(2)])
        trace = qa("Which vault?", "The first.", outcome="success")
        for given, said in ((first, "failure"), (second, None)):
            run = trace.model_copy(update={"id": given, "helped_by": (given,)})
            memory.add_own([run], judged=False)
            if said:
                memory.feedback(given, outcome=said)
        assert memory.store.ledger.run_outcomes([first, second]) == {first: (0, 1)}
