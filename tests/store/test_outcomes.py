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
