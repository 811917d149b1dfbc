"""Archives that anybody changed in any way: refused, or imported as well as they can be."""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import resource
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lag_integrations.errors import StoreError
from lag_integrations.store.archive import check_archive, import_archive
from lag_integrations.store.store import LogStore
from tests.store.processes import numbered, open_memory

KEY = bytes(range(32))
VALUES = [None, True, -1, 0, 2**31, 2**70, float("nan"), 1e308, "", "../../x", "/tmp/x", "a\x00b"]
VALUES += ["x" * 5_000, "\ud800", [], {}, [[]] * 50, {"a": {"b": [1]}}, "0" * 64]
NAMES = [
    "../evil",
    "/tmp/evil",
    "segments/00000009.safetensors",
    "manifest.json",
    "logs.jsonl",
    "/",
]

Members = list[tuple[str, bytes]]
Draw = Callable[[st.SearchStrategy[Any]], Any]


class Target(NamedTuple):
    members: Members
    store: LogStore
    folder: Path


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("fuzz")
    with open_memory(folder / "source") as source:
        source.add_many(numbered(number) for number in range(4))
        source.flush()
        source.export_to(folder / "a.zip", segments=True, key=KEY)
    with zipfile.ZipFile(folder / "a.zip") as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    store = LogStore(folder / "store", "default")
    yield Target(members, store, folder)
    store.close()


def changed_bytes(draw: Draw, data: bytes) -> bytes:
    place = draw(st.integers(0, max(len(data) - 1, 0)))
    what = draw(st.sampled_from(["flip", "cut", "insert", "number"])) if data else "insert"
    if what == "cut":
        return data[:place]
    if what == "insert":
        return data[:place] + draw(st.binary(max_size=40)) + data[place:]
    if what == "number":
        number = draw(st.sampled_from([0, 1, 2**16 - 1, 2**31 - 1, 2**32 - 1]))
        return data[:place] + struct.pack("<I", number) + data[place + 4 :]
    return data[:place] + bytes([data[place] ^ draw(st.integers(1, 255))]) + data[place + 1 :]


def changed_json(draw: Draw, line: bytes) -> bytes:
    """The JSON of a line, with one value of it, however deep, exchanged or left out."""
    try:
        document = json.loads(line)
    except ValueError:
        return line
    place = document
    while isinstance(place, dict | list) and place:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
            place = place[key]
        elif draw(st.integers(0, 4)):
            place[key] = draw(st.sampled_from(VALUES))
            break
        else:
            del place[key]
            break
    return json.dumps(document).encode()


def changed_lines(draw: Draw, data: bytes) -> bytes:
    lines = data.splitlines() or [b""]
    place = draw(st.integers(0, len(lines) - 1))
    what = draw(st.sampled_from(["json", "json", "json", "again", "out", "bytes"]))
    if what == "json":
        lines[place] = changed_json(draw, lines[place])
    elif what == "bytes":
        lines[place] = changed_bytes(draw, lines[place])
    elif what == "again":
        lines.append(lines[place])
    else:
        del lines[place]
    return b"\n".join(lines) + b"\n"


def changed_members(draw: Draw, members: Members) -> Members:
    members = list(members)
    place = draw(st.integers(0, len(members) - 1))
    name, data = members[place]
    what = draw(st.sampled_from(["content", "content", "content", "out", "more", "name"]))
    if what == "content" and name == "manifest.json":
        members[place] = name, changed_json(draw, data)
    elif what == "content":
        change = changed_lines if name.endswith(".jsonl") else changed_bytes
        members[place] = name, change(draw, data)
    elif what == "out":
        del members[place]
    elif what == "more":
        members.append((draw(st.sampled_from(NAMES)), data))
    else:
        members[place] = draw(st.sampled_from(NAMES)), data
    return members


def made_to_fit(members: Members, key: bytes | None) -> Members:
    """The members with hashes, and a signature, that fit them."""
    found = dict(members)
    try:
        manifest = json.loads(found["manifest.json"])
        manifest["sha256"] = {
            name: hashlib.sha256(found[name]).hexdigest() for name in manifest["sha256"]
        }
        manifest.pop("signature", None)
        if key is not None:
            text = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
            manifest["signature"] = hmac.new(key, text, "sha256").hexdigest()
    except (ValueError, KeyError, TypeError):
        return members
    text = json.dumps(manifest).encode()
    return [(name, text if name == "manifest.json" else data) for name, data in members]


def changed_archives(draw: Draw, members: Members) -> bytes:
    for _ in range(draw(st.integers(0, 3))):
        if members:
            members = changed_members(draw, members)
    fits = draw(st.sampled_from(["no", "hashes", "signature", "signature"]))
    if fits != "no":
        members = made_to_fit(members, KEY if fits == "signature" else None)
    compression = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for member in members:
            archive.writestr(*member)
    data = file.getvalue()
    for _ in range(draw(st.sampled_from([0, 0, 1, 3]))):
        if draw(st.booleans()):  # in the headers at the end: sizes, places, names
            begin = data.find(b"PK\x01\x02")
            data = data[:begin] + changed_bytes(draw, data[begin:])
        else:
            data = changed_bytes(draw, data)
    return data


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if folder / "store" not in path.parents}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "examples", [60, pytest.param(2_000, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_changed_archives_are_refused_or_imported(target: Target, examples: int) -> None:
    file = target.folder / "changed.zip"
    file.write_bytes(b"")
    outside = everything(target.folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ledger = target.store.ledger

    @settings(
        max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(st.data())
    def changed(data: Any) -> None:
        file.write_bytes(changed_archives(data.draw, target.members))
        key = data.draw(st.sampled_from([KEY, KEY, None]))
        known = set(ledger.ids())
        with suppress(StoreError):
            check_archive(file, key)
        try:
            imported = import_archive(target.store, file, key=key)
        except StoreError:
            assert set(ledger.ids()) == known, "refused, but not as a whole"
        else:
            assert len(set(ledger.ids()) - known) == imported.new
            assert imported.trusted or imported.segments == 0
        assert not list(ledger.damaged())
        if len(known) > 20:
            target.store.purge()

    changed()
    assert everything(target.folder) == outside
    assert not Path("/tmp/evil").exists()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 2**10
    assert grown < 300e6
