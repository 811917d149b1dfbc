"""The memory through its public API: real SQLite, real Chroma, a real embedder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import sentence_transformers
import torch
from sentence_transformers import SentenceTransformer

from lag_integrations import KVLogMemory, Trace, packaged
from lag_integrations.engine.token_selection import LastAction
from lag_integrations.errors import (
    EmbedderMismatchError,
    EncodingError,
    StoreError,
    TraceError,
)
from lag_integrations.memory.segment_indexer import _slot
from lag_integrations.store import embedder as embedders
from tests.conftest import overwrite, qa
from tests.helpers import stored_segments
from tests.store.model import hash_embedder
from tests.store.processes import result_of

VAULT = qa("What is the code of the vault in Lima?", "The code of the vault is 7741.")
FERRY = qa("What does the Ostrava ferry carry?", "It carries bees.", outcome="success")


def segment_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_add_then_recall(memory, engine):
    memory.attach(engine)
    vault, ferry = memory.add(VAULT), memory.add(FERRY)
    memory.flush()
    found = memory.recall("Which code opens the vault in Lima?")
    assert [item.id for item in found] == [vault]  # the ferry is below the floor
    assert found[0].trace == VAULT
    assert 0.5 < found[0].score <= 1
    everything = memory.recall("Which code opens the vault in Lima?", min_score=-1)
    assert [item.id for item in everything] == [vault, ferry]
    assert everything[0].score > everything[1].score
    assert memory.recall("vault code", k=0) == []
    assert memory.recall("  ") == []
    segment = memory.segments(found)[0]
    fresh = engine.encode(VAULT)
    assert torch.equal(segment.token_ids, fresh.token_ids)
    for mine, theirs in zip(segment.slots[0], fresh.slots[0], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)  # encoded anew, in parts


def test_get_gives_logs_in_the_order_asked_for_of_this_namespace_only(memory, embedder):
    ids = memory.add_many([VAULT, FERRY])
    found = memory.get([ids[1], "unknown", ids[0], ids[1]])
    assert [(log.id, log.trace, log.score) for log in found] == [
        (ids[1], FERRY, None),
        (ids[0], VAULT, None),
    ]
    assert [log.id for log in memory.get(ids[0])] == [ids[0]]
    with KVLogMemory(memory.path, namespace="other", embedder=embedder) as other:
        assert other.get(ids) == []


def test_an_empty_memory_recalls_nothing(memory):
    assert memory.recall("anything") == []


def recalling(folder: Path, done: Connection) -> None:
    """Opens a memory with the packaged embedder and tells which logs of the vault it finds."""
    with KVLogMemory(folder) as memory:
        done.send([log.id for log in memory.recall("code of the vault in Lima")])


def test_reopening_in_a_new_process_finds_everything(memory, small):
    memory.attach(small)
    key = memory.add(VAULT)
    memory.flush()
    memory.close()
    assert result_of(recalling, memory.path) == [key]


def test_what_was_added_without_a_model_is_encoded_when_one_comes(memory, small):
    memory.add(VAULT)
    memory.flush()
    assert segment_files(memory.path) == []
    found = memory.recall("vault code Lima")
    with pytest.raises(StoreError, match="attach"):
        memory.segments(found)
    memory.attach(small)
    assert len(memory.segments(found)[0]) > 3
    memory.flush()
    assert len(segment_files(memory.path)) == 1


def test_the_worker_embeds_and_encodes_by_itself(memory, small):
    memory.attach(small)
    memory.add(VAULT)
    deadline = time.monotonic() + 60
    while not (segment_files(memory.path) and memory.recall("vault code Lima")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


NEVER_CLOSES = """
import sys
from concurrent.futures import ThreadPoolExecutor
from lag_integrations import Engine, KVLogMemory, Trace, packaged
from lag_integrations.store.embedder import Embedder

folder, embedder = sys.argv[1:]
with ThreadPoolExecutor() as pool:
    embedded = pool.submit(Embedder(packaged.embedder()).embed, ["Hello"])
    engine = Engine.load(packaged.chat_model())
    embedded.result()
print("loaded")
memory = KVLogMemory(folder, embedder=embedder)
memory.attach(engine)
for n in range(8):
    memory.add(Trace.from_messages([{"role": "user", "content": f"Vault {n}?"},
        {"role": "assistant", "content": f"The code of vault {n} is 7{n}. " * 9}]))
"""


def test_a_program_that_never_closes_ends_cleanly_and_loses_nothing(tmp_path, embedder):
    """Neither loading at once nor ending amid work spoils a process.

    The embedder loads while the model does, as the memory's worker may do it: transformers alone
    would spoil the process for good. At the end, the worker loads it anew, from another folder.
    """
    folder = tmp_path / "embedder"
    shutil.copytree(packaged.embedder(), folder, copy_function=os.symlink)
    command = [sys.executable, "-c", NEVER_CLOSES, str(tmp_path / "m"), str(folder)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "loaded\n"
    with KVLogMemory(tmp_path / "m", embedder=embedder) as memory:
        memory.flush()
        assert len(memory.recall("vault", k=50, min_score=-1)) == 8


def test_equal_traces_are_one_log(memory):
    again = VAULT.model_copy(update={"id": "other", "outcome": "success"})
    assert memory.add(VAULT) == memory.add(again)
    memory.flush()
    assert len(memory.recall("vault code Lima", min_score=-1)) == 1


def test_a_later_verdict_counts(memory):
    failed = VAULT.model_copy(update={"outcome": "failure"})
    assert memory.add(failed)
    memory.flush()
    assert memory.recall("vault code Lima") == []
    memory.add(VAULT.model_copy(update={"outcome": "success"}))
    memory.add(VAULT)  # unknown: the verdict stays
    memory.flush()
    assert [item.trace.outcome for item in memory.recall("vault code Lima")] == ["success"]


def test_errors_of_the_ledger_do_not_repeat_the_trace(memory):
    with memory.store.database.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE segments")
        connection.exec_driver_sql("DROP TABLE logs")
    with pytest.raises(StoreError) as caught:
        memory.add(VAULT)
    assert "7741" not in str(caught.value)


def test_failures_are_kept_but_not_recalled(tmp_path, embedder):
    failed = VAULT.model_copy(update={"outcome": "failure"})
    with KVLogMemory(tmp_path / "m", embedder=embedder) as memory:
        key = memory.add(failed)
        memory.flush()
        assert memory.recall("vault code Lima", min_score=-1) == []
    with KVLogMemory(tmp_path / "m", embedder=embedder, outcomes=["failure"]) as memory:
        assert [item.id for item in memory.recall("vault code Lima")] == [key]


def test_namespaces_see_only_their_own(tmp_path, embedder):
    with (
        KVLogMemory(tmp_path / "m", namespace="a", embedder=embedder) as mine,
        KVLogMemory(tmp_path / "m", namespace="b", embedder=embedder) as theirs,
    ):
        key = mine.add(VAULT)
        mine.flush()
        assert theirs.add(FERRY)
        theirs.flush()
        assert [item.id for item in mine.recall("vault", min_score=-1)] == [key]
        assert [item.trace for item in theirs.recall("vault", min_score=-1)] == [FERRY]


@pytest.mark.parametrize("name", ["", "../up", "a/b", "ünï", "x" * 10_000, ".hidden", "a b", None])
def test_hostile_namespaces_are_refused(tmp_path, name):
    with pytest.raises(StoreError, match="valid namespace"):
        KVLogMemory(tmp_path / "m", namespace=name)


def test_a_trace_without_a_response_is_refused(memory):
    with pytest.raises(TraceError, match="no assistant response"):
        memory.add(Trace.from_messages([{"role": "user", "content": "Anyone?"}]))
    memory.add(VAULT)
    memory.flush()
    assert memory.recall("vault code Lima")


@pytest.mark.parametrize("damage", ["cut", "emptied", "removed", "other"])
def test_a_damaged_segment_is_encoded_again(memory, small, damage, caplog):
    memory.attach(small)
    memory.add(VAULT)
    memory.flush()
    found = memory.recall("vault code Lima")
    before = memory.segments(found)[0]
    (file,) = segment_files(memory.path)
    data = file.read_bytes()
    if damage == "removed":
        file.unlink()
    else:
        overwrite(file, {"cut": data[:-100], "emptied": b"", "other": b"\x10" + data}[damage])
    memory.store.segment_cache.clear()
    after = memory.segments(found)[0]
    for mine, theirs in zip(before.slots[0], after.slots[0], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)  # encoded anew, in parts
    assert "cannot be used" in caplog.text
    (again,) = (path for path in segment_files(memory.path) if "quarantine" not in path.parts)
    assert again.stat().st_size == len(data)


def test_another_model_encodes_again_and_says_so(memory, small, caplog):
    from lag_integrations import Engine

    template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    other = Engine(small.model, small.tokenizer, chat_template=template)
    memory.attach(small)
    memory.add(VAULT)
    memory.flush()
    with caplog.at_level("INFO"):
        memory.attach(other)
    assert "chat_template" in caplog.text
    found = memory.recall("vault code Lima")
    assert memory.segments(found)[0].fingerprint == other.fingerprint.id
    memory.attach(small)
    assert memory.segments(found)[0].fingerprint == small.fingerprint.id
    assert len(segment_files(memory.path)) == 2


def test_a_changed_embedder_is_refused_and_loses_nothing(tmp_path, embedder):
    with KVLogMemory(tmp_path / "m", embedder=embedder) as memory:
        memory.add(VAULT)
        memory.flush()

    def other(texts: list[str]) -> list[list[float]]:
        return [[1.0, float(len(text)), 0.5] for text in texts]

    with (
        KVLogMemory(tmp_path / "m", embedder=other) as memory,
        pytest.raises(EmbedderMismatchError, match=r"384 dimensions.*reindex"),
    ):
        memory.recall("vault")
    with KVLogMemory(tmp_path / "m", embedder=embedder) as memory:
        assert memory.recall("vault code Lima")


def test_an_embedder_that_fails_loses_nothing(tmp_path, embedder):
    broken = True

    def flaky(texts: list[str]) -> np.ndarray:
        if broken:
            raise ConnectionError("embedding service is down")
        return embedder.encode(texts)

    with KVLogMemory(tmp_path / "m", embedder=flaky) as memory:
        memory.add(VAULT)
        with pytest.raises(StoreError, match="ConnectionError"):
            memory.flush()
        broken = False
        memory.flush()
        assert memory.recall("vault code Lima")


def test_memories_share_an_embedder_that_is_loaded_once(tmp_path, monkeypatch):
    folder = tmp_path / "embedder"
    folder.symlink_to(packaged.embedder())
    loaded = []

    class Counted(SentenceTransformer):
        def __init__(self, *args, **kwargs):
            loaded.append(args)
            time.sleep(0.2)  # the others come meanwhile
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", Counted)
    monkeypatch.setattr(embedders, "_models", {})
    sources = [folder, str(folder), packaged.embedder(), None]
    with ExitStack() as stack:
        memories = [
            stack.enter_context(KVLogMemory(tmp_path / str(number), embedder=source))
            for number, source in enumerate(sources)
        ]
        for memory in memories:
            memory.add(VAULT)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda memory: memory.embed_pending(), memories))
        found = [memory.recall("Which code opens the vault in Lima?") for memory in memories]
    with KVLogMemory(tmp_path / "later", embedder=folder) as memory:
        assert memory.recall("anything") == []
    assert [len(logs) for logs in found] == [1] * 4
    assert len(loaded) == 1


def test_a_query_that_was_asked_lately_is_not_embedded_again(tmp_path, embedder):
    asked = []

    def counting(texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        return embedder.encode(texts)

    with KVLogMemory(tmp_path / "m", embedder=counting) as memory:
        key = memory.add(VAULT)
        memory.flush()
        first = memory.recall("vault code Lima")
        assert memory.recall("vault code Lima", k=1) == first
        assert asked.count("vault code Lima") == 1
        memory.recall("the code of a vault")
        assert asked.count("the code of a vault") == 1
        memory.delete(key)  # nothing of what was done with it stays in memory
        assert memory.recall("vault code Lima") == []
        memory.purge()
        memory.recall("vault code Lima")
        assert asked.count("vault code Lima") == 3


def test_a_bad_embedding_of_a_query_is_not_held(tmp_path):
    gives, scale = 0.0, 1.0

    def sometimes(texts: list[str]) -> np.ndarray:
        return hash_embedder(texts) * (gives if texts == ["vault code Lima"] else 1) * scale

    with KVLogMemory(tmp_path / "m", embedder=sometimes, min_score=0) as memory:
        memory.add(VAULT)
        memory.flush()
        with pytest.raises(StoreError, match="zero or not finite"):
            memory.recall("vault code Lima")
        gives = 1.0
        assert memory.recall("vault code Lima")
        scale = -1.0  # the embedder becomes another one
        memory.reindex()
        assert memory.recall("vault code Lima"), "the query is embedded as the logs are"


def test_a_log_that_cannot_be_encoded_is_named_and_holds_up_no_other(memory, small):
    only_calls = Trace.from_messages(
        [
            {"role": "user", "content": "Ring the bell."},
            {"role": "assistant", "content": "<think>"},
            {"role": "user", "content": "Go on."},
        ]
    )
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content.split('<think>')[-1] }}{% endfor %}"
    )
    from lag_integrations import Engine

    memory.attach(Engine(small.model, small.tokenizer, chat_template=template))
    key = memory.add(only_calls)
    memory.add(VAULT)
    with pytest.raises(EncodingError, match=key):
        memory.flush()
    memory.flush()  # known by now
    assert memory.segments(memory.recall("vault code Lima"))


def test_logs_are_encoded_together_and_a_bad_one_is_found(memory, small, monkeypatch, no_worker):
    memory.attach(small)
    traces = [qa(f"What is in box {number}?", f"Box {number} holds tin.") for number in range(5)]
    ids = memory.add_many(traces)
    batches: list[int] = []
    real = small.encoder.encode_batch

    def encode_batch(encodables, patience=0.0):
        batches.append(len(encodables))
        if any("box 3" in small.tokenizer.decode(one.token_ids) for one in encodables):
            raise RuntimeError("out of memory")
        return real(encodables)

    monkeypatch.setattr(small.encoder, "encode_batch", encode_batch)
    with pytest.raises(EncodingError, match=rf"1 logs could not .*{ids[3]}: RuntimeError"):
        memory.flush()
    assert batches[0] > 1
    others = [log for log in memory.get(ids) if log.id != ids[3]]
    assert None not in stored_segments(memory, others)
    monkeypatch.undo()
    memory.flush()
    assert None not in stored_segments(memory, memory.get(ids))


def test_what_another_encodes_is_left_to_it(memory, small, no_worker):
    memory.attach(small)
    ids = memory.add_many(qa(f"What is in tin {n}?", f"Tin {n} holds tea.") for n in range(5))
    memory.embed_pending()
    with memory.store.locks.hold(_slot(ids[2])):
        while memory._run_once(full_scan=True):
            pass
        stored = stored_segments(memory, memory.get(ids))
        assert [log_id for log_id, one in zip(ids, stored, strict=True) if one is None] == [ids[2]]
    memory.flush()
    assert None not in stored_segments(memory, memory.get(ids))


def test_a_model_that_is_closed_meanwhile_is_no_fault_of_the_logs(
    memory, small, monkeypatch, no_worker
):
    memory.attach(small)
    memory.add_many(qa(f"What is in bag {n}?", f"Bag {n} holds salt.") for n in range(3))
    memory.embed_pending()

    def closed(*_: object, **__: object) -> None:
        monkeypatch.setattr(small._runner, "_model", None)
        raise RuntimeError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(small.encoder, "encode_batch", closed)
        patch.setattr(small._runner, "_model", small.model)  # comes back afterwards
        with pytest.raises(RuntimeError, match="gone"):
            memory._run_once(full_scan=True)
    assert memory.store.failures.all() == {}
    memory.flush()


def test_a_file_that_is_no_store_is_refused(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "ledger.sqlite").write_text("this is not a database, " * 100)
    with pytest.raises(StoreError, match=r"ledger\.sqlite"):
        KVLogMemory(tmp_path / "m")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="folder"):
        KVLogMemory(tmp_path / "file")


def test_a_closed_memory_says_so(memory):
    memory.close()
    memory.close()
    with pytest.raises(StoreError, match="closed"):
        memory.add(VAULT)


def test_selection_is_part_of_what_a_segment_is(tmp_path, embedder, small):
    with KVLogMemory(tmp_path / "m", embedder=embedder, selection=LastAction()) as memory:
        memory.attach(small)
        memory.add(qa("Colour of the sea?", "I think <ans>blue</ans>"))
        memory.flush()
        segment = memory.segments(memory.recall("Colour of the sea?"))[0]
        assert "blue" in small.tokenizer.decode(segment.token_ids)
        assert "think" not in small.tokenizer.decode(segment.token_ids)
