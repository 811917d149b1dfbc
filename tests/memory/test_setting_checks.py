"""What a memory is told is checked when it is opened."""

from __future__ import annotations

import pytest

from lag_integrations import KVLogMemory
from lag_integrations.errors import LAGError, SettingsError
from tests.store.model import hash_embedder


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("k", "three"),
        ("k", -1),
        ("k", 2.5),
        ("k", True),
        ("min_relevance", 7),
        ("min_relevance", float("nan")),
        ("min_score", -2),
        ("outcomes", ("sucess",)),
        ("outcomes", ()),
        ("diversity", 5),
        ("hot_bytes", -1),
        ("max_pending", 0),
        ("unjudged_documents", "all"),
        ("untrusted_tools", "lookup"),
        ("untrusted_tools", [1]),
        ("screen", "strict"),
        ("redact", "names"),
    ],
)
def test_a_setting_that_is_not_valid_is_refused_at_once(tmp_path, name, value):
    with pytest.raises(SettingsError, match="outcome" if name == "outcomes" else name):
        KVLogMemory(tmp_path / "m", **{name: value})
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("max_bytes", "1 GB"), ("max_logs", 0), ("ttl", -5), ("codec", "int3")]
)
def test_so_are_budgets_and_codecs(tmp_path, name, value):
    with pytest.raises(LAGError, match=name if name != "codec" else "int3"):
        KVLogMemory(tmp_path / "m", **{name: value})
    assert not (tmp_path / "m").exists()


def test_a_recall_is_told_no_outcome_that_does_not_exist(tmp_path):
    with KVLogMemory(tmp_path / "m", embedder=hash_embedder) as memory:
        for way in (memory.recall, memory.search, memory.explain):
            with pytest.raises(SettingsError, match="sucess"):
                way("What is the code?", outcomes=["sucess"])


@pytest.mark.parametrize(
    ("name", "value"), [("min_score", 7), ("min_relevance", -1), ("diversity", "much")]
)
def test_a_recall_is_told_nothing_out_of_range(tmp_path, name, value):
    with (
        KVLogMemory(tmp_path / "m", embedder=hash_embedder) as memory,
        pytest.raises(SettingsError, match=name),
    ):
        memory.recall("What is the code?", **{name: value})
