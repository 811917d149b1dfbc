"""Archives through the public API: real SQLite, real segment files, a tiny model."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lag_integrations import Engine, KVLogMemory
from lag_integrations.errors import StoreError
from tests.conftest import overwrite, qa
from tests.store.model import hash_embedder, tiny_engine

COUNTERS = ("captured_at", "times_seen", "times_recalled", "times_helped", "times_harmed")
VAULT = qa("What is the code of the vault?", "It is 7741.", outcome="success", metadata={"n": 1})
FERRY = qa("What does the ferry carry?", "Bees.")
FAILED = qa("Who paints the tower?", "Nobody knows.", outcome="failure")

Open = Callable[..., KVLogMemory]


@pytest.fixture(scope="module")
def tiny() -> Engine:
    return tiny_engine()


@pytest.fixture
def open_(tmp_path: Path) -> Iterator[Open]:
    opened: list[KVLogMemory] = []

    def open_(name: str, **settings: object) -> KVLogMemory:
        memory = KVLogMemory(tmp_path / name, embedder=hash_embedder, min_score=-1, **settings)
        opened.append(memory)
        return memory

    yield open_
    for memory in opened:
        memory.close()


@pytest.fixture
def source(open_, tiny) -> KVLogMemory:
    """A memory with three logs, two of them encoded, that were used."""
    memory = open_("source", namespace="from")
    memory.attach(tiny)
    vault, _, _ = memory.add_many([VAULT, FERRY, FAILED])
    memory.add(VAULT)
    memory.feedback(vault, helped=True)
    memory.flush()
    memory.recall(VAULT.task, k=1)
    memory.flush()
    return memory


def contents(memory: KVLogMemory) -> dict[str, tuple[object, ...]]:
    return {
        info.trace.task: (info.trace, *(getattr(info, name) for name in COUNTERS))
        for info in memory.store.ledger.info()
    }


def rewritten(archive: Path, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> Path:
    """The archive, with members changed, renamed or left out."""
    target = archive.with_name("changed.zip")
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            changed = change(name, old.read(name))
            if changed is not None:
                new.writestr(*changed)
    return target


def test_a_round_trip_into_another_namespace(source, open_, tiny, tmp_path):
    target = open_("target", namespace="to")
    target.attach(tiny)
    steps: list[tuple[int, int]] = []
    written = source.export_to(
        tmp_path / "a.zip", segments=True, progress=lambda *step: steps.append(step)
    )
    assert (written.logs, written.new, written.segments, written.skipped) == (3, 0, 2, 0)
    assert steps[-1] == (5, 5)
    read = target.import_from(tmp_path / "a.zip", lambda *step: steps.append(step))
    assert (read.logs, read.new, read.segments, read.skipped) == (3, 3, 2, 0)
    assert steps[-1] == (5, 5)
    assert contents(target) == contents(source)
    assert contents(target)[VAULT.task][2:] == (2, 1, 1, 0)
    assert target.store.ledger.info(where={"n": 1})  # filters work
    target.flush()
    assert len(target.recall("vault code", k=5)) == 2
    mine, theirs = (
        memory.stored_segments(memory.recall("What is the code of the vault?", k=1))[0]
        for memory in (source, target)
    )
    assert mine is not None
    assert theirs is not None
    assert torch.equal(mine.token_ids, theirs.token_ids)
    assert torch.equal(mine.slots[0][0], theirs.slots[0][0])
    assert target.verify() == []


def test_without_segments_they_are_made_again(source, open_, tiny, tmp_path):
    source.export_to(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert sorted(archive.namelist()) == ["logs.jsonl", "manifest.json"]
        manifest = json.loads(archive.read("manifest.json"))
        lines = [json.loads(line) for line in archive.read("logs.jsonl").splitlines()]
    assert manifest["format"] == "lag-archive"
    assert (manifest["version"], manifest["namespace"], manifest["logs"]) == (1, "from", 3)
    assert manifest["segments"] is False
    assert {line["trace"]["task"] for line in lines} == {VAULT.task, FERRY.task, FAILED.task}
    target = open_("target")
    assert target.import_from(tmp_path / "a.zip").segments == 0
    target.attach(tiny)
    target.flush()
    assert target.segments(target.recall("vault", k=2))


def test_importing_twice_changes_nothing(source, open_, tmp_path):
    source.export_to(tmp_path / "a.zip", segments=True)
    target = open_("target")
    target.import_from(tmp_path / "a.zip")
    before = contents(target)
    files = sorted((tmp_path / "target" / "segments").rglob("*.safetensors"))
    again = target.import_from(tmp_path / "a.zip")
    assert (again.logs, again.new, again.segments) == (3, 0, 0)
    assert contents(target) == before
    assert sorted((tmp_path / "target" / "segments").rglob("*.safetensors")) == files
    assert source.import_from(tmp_path / "a.zip").new == 0  # where it comes from, too
    assert contents(source) == before


def test_an_interrupted_import_can_be_run_again(source, open_, tmp_path):
    source.export_to(tmp_path / "a.zip", segments=True)
    target = open_("target")

    def interrupt(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        target.import_from(tmp_path / "a.zip", interrupt)
    read = target.import_from(tmp_path / "a.zip")
    assert (read.new, read.segments) == (0, 1)
    assert contents(target) == contents(source)


def test_what_is_here_already_is_kept(source, open_, tmp_path):
    source.export_to(tmp_path / "a.zip")
    target = open_("target")
    vault = target.add(VAULT.model_copy(update={"outcome": "failure"}))
    target.add(FAILED.model_copy(update={"outcome": "unknown"}))
    for _ in range(3):
        target.feedback(vault, helped=False)
    seen = contents(target)[VAULT.task][1]
    assert target.import_from(tmp_path / "a.zip").new == 1
    found = contents(target)
    trace, captured, times_seen, _, helped, harmed = found[VAULT.task]
    assert trace.outcome == "failure"  # the verdict that was given here
    assert (captured, times_seen, helped, harmed) == (seen, 2, 1, 3)
    assert found[FAILED.task][0].outcome == "failure"  # none was known here


def test_a_damaged_trace_is_left_out_and_comes_back_from_an_archive(source, tmp_path, caplog):
    source.export_to(tmp_path / "a.zip")
    before = contents(source)
    with source.store.database.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE logs SET trace = replace(trace, '7741', '7742') WHERE outcome = 'success'"
        )
    written = source.export_to(tmp_path / "b.zip", segments=True)
    assert (written.logs, written.skipped) == (2, 1)
    assert "damaged" in caplog.text
    assert [problem.kind for problem in source.verify()] == ["trace_damaged"]
    assert source.import_from(tmp_path / "a.zip").new == 0
    assert source.verify() == []
    assert contents(source) == before


def test_a_damaged_segment_is_left_out_of_an_export(source, open_, tmp_path):
    file = next((tmp_path / "source" / "segments").rglob("*.safetensors"))
    overwrite(file, file.read_bytes()[:-5])
    written = source.export_to(tmp_path / "a.zip", segments=True)
    assert (written.segments, written.skipped) == (1, 1)
    assert open_("target").import_from(tmp_path / "a.zip").segments == 1


def test_a_damaged_segment_in_an_archive_is_skipped(source, open_, tmp_path):
    source.export_to(tmp_path / "a.zip", segments=True)

    def damage(name: str, data: bytes) -> tuple[str, bytes]:
        return name, data[:-9] if name == "segments/00000000.safetensors" else data

    target = open_("target")
    read = target.import_from(rewritten(tmp_path / "a.zip", damage))
    assert (read.new, read.segments, read.skipped) == (3, 1, 1)
    assert target.verify() == []


def test_flipped_bits_in_a_stored_segment_are_skipped(source, open_, tmp_path):
    source.export_to(tmp_path / "a.zip", segments=True)
    plain = rewritten(tmp_path / "a.zip", lambda *member: member)  # not compressed
    data = bytearray(plain.read_bytes())
    data[data.index(b"lag-segment") + 3000] ^= 1
    plain.write_bytes(data)
    read = open_("target").import_from(plain)
    assert (read.new, read.segments, read.skipped) == (3, 1, 1)


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1, -30])
def test_a_truncated_archive_is_refused(source, open_, tmp_path, keep):
    source.export_to(tmp_path / "a.zip", segments=True)
    data = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else keep])
    target = open_("target")
    with pytest.raises(StoreError, match=r"a\.zip.*(cut short|damaged)"):
        target.import_from(tmp_path / "a.zip")
    assert contents(target) == {}


def test_flipped_bits_in_the_logs_are_refused(source, open_, tmp_path):
    source.export_to(tmp_path / "a.zip")
    plain = rewritten(tmp_path / "a.zip", lambda *member: member)
    plain.write_bytes(plain.read_bytes().replace(b"7741", b"7742"))
    target = open_("target")
    with pytest.raises(StoreError, match="damaged"):
        target.import_from(plain)
    assert contents(target) == {}


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"version": 2}, "newer version"),
        ({"version": 0}, "not an archive"),
        ({"version": "1"}, "not an archive"),
        ({"format": "zip"}, "not an archive"),
        ({"namespace": "../up"}, "valid namespace"),
        ({"logs": 4}, "should hold 4 logs, but has 3"),
        ({"logs": None}, "not an archive"),
        (None, "not an archive"),
        ([1], "not an archive"),
    ],
)
def test_other_manifests_are_refused(source, open_, tmp_path, manifest, message):
    source.export_to(tmp_path / "a.zip")

    def change(name: str, data: bytes) -> tuple[str, bytes]:
        if name != "manifest.json":
            return name, data
        new = {**json.loads(data), **manifest} if isinstance(manifest, dict) else manifest
        return name, json.dumps(new).encode()

    target = open_("target")
    with pytest.raises(StoreError, match=message):
        target.import_from(rewritten(tmp_path / "a.zip", change))
    assert contents(target) == {}


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense\n",
        b"{}\n",
        b'{"trace": {"messages": []}}\n',
        b"[" * 100_000 + b"\n",
        b"\xff\xfe\n",
        None,
    ],
)
def test_lines_that_are_no_logs_are_refused_before_anything_is_added(source, open_, tmp_path, line):
    source.export_to(tmp_path / "a.zip")

    def change(name: str, data: bytes) -> tuple[str, bytes] | None:
        if name != "logs.jsonl":
            return name, data
        return None if line is None else (name, data + line)

    target = open_("target")
    with pytest.raises(StoreError, match=r"line 4 of logs\.jsonl|has no logs\.jsonl"):
        target.import_from(rewritten(tmp_path / "a.zip", change))
    assert contents(target) == {}


@pytest.mark.parametrize(
    "counters",
    [
        {"times_seen": -1},
        {"times_helped": 2**40},
        {"captured_at": float("inf")},
        {"times_seen": None},
    ],
)
def test_impossible_counters_are_refused(source, open_, tmp_path, counters):
    source.export_to(tmp_path / "a.zip")

    def change(name: str, data: bytes) -> tuple[str, bytes]:
        if name != "logs.jsonl":
            return name, data
        lines = [json.dumps({**json.loads(line), **counters}) for line in data.splitlines()]
        return name, "\n".join(lines).encode()

    with pytest.raises(StoreError, match="line 1"):
        open_("target").import_from(rewritten(tmp_path / "a.zip", change))


def test_a_log_from_the_future_is_of_now(source, open_, tmp_path):
    source.export_to(tmp_path / "a.zip")

    def change(name: str, data: bytes) -> tuple[str, bytes]:
        if name != "logs.jsonl":
            return name, data
        lines = [
            json.dumps({**json.loads(line), "captured_at": 1e300}) for line in data.splitlines()
        ]
        return name, "\n".join(lines).encode()

    target = open_("target")
    target.import_from(rewritten(tmp_path / "a.zip", change))
    assert all(log[1] < 1e10 for log in contents(target).values())


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("what", ["file", "fingerprint", "selection", "codec", "log_id"])
@pytest.mark.parametrize("hostile", ["../../../../tmp/evil", "/tmp/evil", "C:\\evil", "a\x00b"])
def test_hostile_names_are_harmless(source, open_, tmp_path, what, hostile):
    source.export_to(tmp_path / "a.zip", segments=True)

    def change(name: str, data: bytes) -> tuple[str, bytes]:
        if name == "segments.jsonl":
            lines = [json.dumps({**json.loads(line), what: hostile}) for line in data.splitlines()]
            return name, "\n".join(lines).encode()
        return (hostile if what == "file" and name.startswith("segments/") else name), data

    archive = rewritten(tmp_path / "a.zip", change)
    outside = {path for path in tmp_path.rglob("*") if "target" not in path.parts}
    target = open_("target")
    read = target.import_from(archive)
    assert (read.new, read.segments + read.skipped) == (3, 2)
    if what != "file":
        assert read.skipped == 2
    for file in (tmp_path / "target").rglob("*"):
        assert "evil" not in str(file)
    assert {path for path in tmp_path.rglob("*") if "target" not in path.parts} == outside
    assert not Path("/tmp/evil").exists()
    assert target.verify() == []


def test_what_is_no_archive_is_refused(open_, tmp_path):
    target = open_("target")
    with pytest.raises(StoreError, match="There is no archive"):
        target.import_from(tmp_path / "nothing.zip")
    with pytest.raises(StoreError, match="cannot be read"):
        target.import_from(tmp_path)
    (tmp_path / "text.zip").write_text("not a zip file")
    with pytest.raises(StoreError, match="cannot be read"):
        target.import_from(tmp_path / "text.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(StoreError, match="not an archive"):
        target.import_from(tmp_path / "other.zip")


def test_an_existing_file_is_not_overwritten_unless_told(source, tmp_path):
    file = tmp_path / "a.zip"
    file.write_text("precious")
    with pytest.raises(StoreError, match="exists already"):
        source.export_to(file)
    assert file.read_text() == "precious"
    source.export_to(file, overwrite=True)
    assert zipfile.is_zipfile(file)
    with pytest.raises(StoreError, match="exists already"):
        source.export_to(tmp_path, overwrite=True)
    with pytest.raises(StoreError, match="cannot be written"):
        source.export_to(tmp_path / "no" / "a.zip")


def test_an_export_that_fails_leaves_nothing_behind(source, tmp_path):
    def fail(done: int, total: int) -> None:
        raise RuntimeError("stopped")

    before = set(os.listdir(tmp_path))
    with pytest.raises(RuntimeError, match="stopped"):
        source.export_to(tmp_path / "a.zip", progress=fail)
    assert set(os.listdir(tmp_path)) == before


def test_many_logs_go_in_pages(open_, tmp_path):
    traces = [qa(f"Question {n}?", f"Answer {n} " + "x" * 200) for n in range(1_203)]
    source, target = open_("source"), open_("target", namespace="other")
    source.add_many(traces)
    steps: list[tuple[int, int]] = []
    assert source.export_to(tmp_path / "a.zip", progress=lambda *s: steps.append(s)).logs == 1_203
    assert steps == [(500, 1_203), (1_000, 1_203), (1_203, 1_203)]
    assert target.import_from(tmp_path / "a.zip").new == 1_203
    assert contents(target) == contents(source)


def test_an_empty_namespace_makes_an_empty_archive(open_, tmp_path):
    assert open_("source").export_to(tmp_path / "a.zip", segments=True).logs == 0
    assert open_("target").import_from(tmp_path / "a.zip").logs == 0
