"""Archives with anything in them changed, and what has to hold when they are imported."""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from lag_integrations import Trace
from lag_integrations.errors import StoreError
from lag_integrations.store.archive import check_archive, import_archive
from lag_integrations.store.store import LogStore
from tests.store.processes import open_memory

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


def exported(folder: Path, traces: Iterable[Trace], codec: str = "native") -> Members:
    """What is in an archive of traces with their segments."""
    with open_memory(folder / "source", codec=codec) as source:
        source.add_many(traces)
        source.flush()
        source.export_to(folder / "a.zip", segments=True, key=KEY)
    with zipfile.ZipFile(folder / "a.zip") as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


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
    data = zipped(members, compression)
    for _ in range(draw(st.sampled_from([0, 0, 1, 3]))):
        if draw(st.booleans()):  # in the headers at the end: sizes, places, names
            begin = data.find(b"PK\x01\x02")
            data = data[:begin] + changed_bytes(draw, data[begin:])
        else:
            data = changed_bytes(draw, data)
    return data


def zipped(members: Members, compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for member in members:
            archive.writestr(*member)
    return file.getvalue()


def refused_or_imported(store: LogStore, file: Path, key: bytes | None) -> None:
    """Import an archive: it is refused as a whole, or all that it holds is in the store."""
    ledger = store.ledger
    known = set(ledger.ids())
    with suppress(StoreError):
        check_archive(file, key)
    try:
        imported = import_archive(store, file, key=key)
    except StoreError:
        assert set(ledger.ids()) == known, "refused, but not as a whole"
    else:
        assert len(set(ledger.ids()) - known) == imported.new
        assert imported.trusted or imported.segments == 0
    assert not list(ledger.damaged())
    if len(known) > 20:
        store.purge()
