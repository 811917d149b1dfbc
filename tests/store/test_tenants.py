"""No sequence of operations ever shows one tenant another one's log."""

from __future__ import annotations

import shutil
import tempfile

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lag_integrations import KVLogMemory
from lag_integrations.errors import LogNotFoundError
from tests.conftest import qa
from tests.store.model import hash_embedder, tiny_engine

NAMES = st.sampled_from(["a", "b", "A", "a.b"])
NUMBERS = st.integers(0, 5)
PLACES = st.integers(0, 1_000)
ENGINE = tiny_engine()


def trace(number: int, secret: str = ""):
    return qa(f"What about {number} ?", f"It is {number} {secret}".strip())


class Tenants(RuleBasedStateMachine):
    """Four memories on one store, and what each of them must hold."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.expected: dict[str, dict[str, str]] = {}
        self.seen = []  # every log that was ever recalled, with its tenant
        self.memories = {name: self.open(name) for name in ("a", "b", "A", "a.b")}

    def open(self, name: str) -> KVLogMemory:
        self.expected.setdefault(name, {})
        memory = KVLogMemory(self.folder, namespace=name, embedder=hash_embedder, min_score=-1, k=9)
        memory.attach(ENGINE)
        return memory

    def teardown(self) -> None:
        for memory in self.memories.values():
            memory.close()
        shutil.rmtree(self.folder)

    @rule(name=NAMES, number=NUMBERS, own=st.booleans())
    def add(self, name: str, number: int, own: bool) -> None:
        added = trace(number, f"of {name}" if own else "")  # the same content in several, or not
        self.expected[name][self.memories[name].add(added)] = added.content_hash

    @rule(name=NAMES)
    def flush(self, name: str) -> None:
        self.memories[name].flush()

    @rule(name=NAMES, number=NUMBERS, diversity=st.sampled_from([0.0, 0.5]))
    def recall(self, name: str, number: int, diversity: float) -> None:
        found = self.memories[name].recall(f"What about {number} ?", diversity=diversity)
        for log in found:
            assert self.expected[name].get(log.id) == log.trace.content_hash
            self.seen.append((name, log))
        kept = {
            segment.token_ids.numpy().tobytes() for segment in self.memories[name].segments(found)
        }
        assert kept == {ENGINE.encode(log.trace).token_ids.numpy().tobytes() for log in found}

    # What was recalled depends on how far the workers were, so it must not decide what is drawn.
    @rule(name=NAMES, which=PLACES)
    def use_anothers(self, name: str, which: int) -> None:
        others = [log for owner, log in self.seen if owner != name]
        if not others:
            return
        log = others[which % len(others)]
        memory = self.memories[name]
        assert log.id not in self.expected[name]
        with pytest.raises(LogNotFoundError):
            memory.segments([log])
        with pytest.raises(LogNotFoundError):
            memory.feedback(log.id, helped=False)
        assert memory.delete(log.id).logs == 0
        assert memory.store.ledger.get([log.id]) == {}
        assert memory.store.ledger.info([log.id]) == []

    @rule(name=NAMES, which=PLACES)
    def delete(self, name: str, which: int) -> None:
        if self.expected[name]:
            keys = sorted(self.expected[name])
            key = keys[which % len(keys)]
            assert self.memories[name].delete(key).logs == 1
            del self.expected[name][key]

    @rule(name=NAMES)
    def purge(self, name: str) -> None:
        assert self.memories[name].purge().logs == len(self.expected[name])
        self.expected[name].clear()

    @rule(name=NAMES)
    def reopen(self, name: str) -> None:
        self.memories[name].close()
        self.memories[name] = self.open(name)

    @rule(name=NAMES)
    def reindex(self, name: str) -> None:
        self.memories[name].reindex()

    @invariant()
    def the_ledgers_are_apart(self) -> None:
        for name, memory in getattr(self, "memories", {}).items():
            assert set(memory.store.ledger.ids()) == set(self.expected[name])


TestTenants = Tenants.TestCase
TestTenants.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
