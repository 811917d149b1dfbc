"""Tenants, users and sources mixed at random, on one store and one model: nothing foreign shows."""

from __future__ import annotations

import shutil
import tempfile
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from lag_integrations import KVLogMemory, Trace
from lag_integrations.langchain import LAGChatModel
from tests.store.model import hash_embedder, tiny_engine

ENGINE = tiny_engine()
TENANTS = st.sampled_from(["red", "blue"])
USERS = st.sampled_from(["ann", "bob", None])
SOURCES = st.sampled_from(["user", "document", "web page"])
NUMBERS = st.integers(0, 5)


def run(number: int, user: str | None, source: str) -> Trace:
    """A run that nobody judged."""
    metadata: dict[str, Any] = {} if user is None else {"user_id": user}
    steps: list[dict[str, Any]] = [{"role": "user", "content": f"What about {number} ?"}]
    if source == "document":
        metadata["sources"] = [{"id": f"d{number}", "documents": ["d"], "hash": "h"}]
    if source == "web page":
        call = {"name": "browse_web", "args": {}, "id": "1"}
        steps += [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "A page.", "name": "browse_web", "tool_call_id": "1"},
        ]
    steps.append({"role": "assistant", "content": f"{number} of {user} by {source}."})
    return Trace.from_messages(steps, metadata=metadata)


class Mixed(RuleBasedStateMachine):
    """What is recalled, injected and reused, against what may be."""

    logs = Bundle("logs")

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.memories = {name: self.open(name) for name in ("red", "blue")}
        self.owners: dict[str, dict[str, tuple[str | None, str, bool]]] = {"red": {}, "blue": {}}
        self.asked = {"red": False, "blue": False}  # since something was deleted

    def open(self, name: str) -> KVLogMemory:
        memory = KVLogMemory(
            self.folder, namespace=name, embedder=hash_embedder, min_score=-1.0, k=10
        )
        memory.attach(ENGINE)
        return memory

    def teardown(self) -> None:
        for memory in getattr(self, "memories", {}).values():
            memory.close()
        shutil.rmtree(getattr(self, "folder", "no folder"), ignore_errors=True)

    @rule(target=logs, tenant=TENANTS, number=NUMBERS, user=USERS, source=SOURCES)
    def add(self, tenant: str, number: int, user: str | None, source: str) -> tuple[str, str]:
        key = self.memories[tenant].add(run(number, user, source))
        self.memories[tenant].embed_pending()
        judged = self.owners[tenant].get(key, (None, "", False))[2]
        self.owners[tenant][key] = (user, source, judged)
        return tenant, key

    @rule(log=logs)
    def judge(self, log: tuple[str, str]) -> None:
        tenant, key = log
        if key in self.owners[tenant]:
            self.memories[tenant].feedback(key, outcome="success")
            user, source, _ = self.owners[tenant][key]
            self.owners[tenant][key] = (user, source, True)

    @rule(log=logs)
    def delete(self, log: tuple[str, str]) -> None:
        tenant, key = log
        self.memories[tenant].delete(key)
        self.owners[tenant].pop(key, None)
        self.asked[tenant] = False

    def allowed(self, tenant: str, user: str | None) -> set[str]:
        return {
            key
            for key, (owner, source, judged) in self.owners[tenant].items()
            if source == "user" or judged or owner == user
        }

    @rule(tenant=TENANTS, number=NUMBERS, user=USERS)
    def recall(self, tenant: str, number: int, user: str | None) -> None:
        found = self.memories[tenant].recall(f"What about {number} ?", user=user, k=50)
        assert {log.id for log in found} == self.allowed(tenant, user)

    @rule(tenant=TENANTS, number=NUMBERS, user=USERS)
    def ask(self, tenant: str, number: int, user: str | None) -> None:
        """What the model reuses, this tenant has asked before."""
        model = LAGChatModel(ENGINE, memory=self.memories[tenant], max_tokens=1)
        config: Any = {"metadata": {} if user is None else {"user_id": user}}
        answer = model.invoke(f"What about {number} ?", config)
        lag = answer.response_metadata["lag"]
        assert set(lag["log_ids"]) <= self.allowed(tenant, user)
        assert lag["reused_tokens"] == 0 or self.asked[tenant]
        self.asked[tenant] = True

    @invariant()
    def nothing_of_others_is_held(self) -> None:
        for name, memory in getattr(self, "memories", {}).items():
            assert set(memory.store.ledger.ids()) == set(self.owners[name])


TestMixed = Mixed.TestCase
TestMixed.settings = settings(
    max_examples=8,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
