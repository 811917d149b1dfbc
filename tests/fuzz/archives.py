"""Archives: refused as a whole, or imported; never more than they may bring."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from lag_integrations.store.store import LogStore
from tests.conftest import qa
from tests.store.archives import (
    KEY,
    NAMES,
    Members,
    exported,
    made_to_fit,
    refused_or_imported,
    zipped,
)

WORDS = (
    *("\n@@", "\n@@manifest.json\n", "\n@@logs.jsonl\n", "\n@@segments.jsonl\n", *NAMES),
    *('"trace":', '"source":', '"captured_at":', '"times_seen":', '"metadata":', '"messages":'),
    *('"lag_recall":', '"lag_place":', '"lag_scope":', '"verdict":', '"sources":', '"helped_by":'),
    *('"version":1', '"segments":0', '"logs":0', "null", "1e999", "NaN", "-1", "\\ud800"),
    *("\\u0000", "PK\1\2", "PK\3\4", "PK\5\6"),
)
WHOLE, MEMBERS = 0, 1
"""An input's first byte: a zip file; what is in one, each file after a line ``@@NAME``."""
SIGNED, HASHED, AS_IS = 0, 1, 2
"""The second byte: how what is in a zip file is made to fit."""
_MEMBER = re.compile(rb"\n@@([^\0\n]+)\n")


@cache
def _members() -> Members:
    with tempfile.TemporaryDirectory() as folder:
        traces = qa("A ?", "B ."), qa("C ?", "D .", outcome="success", metadata={"a": [1, "b"]})
        return exported(Path(folder), traces, codec="int4")


def seeds() -> Iterator[bytes]:
    members = _members()
    for signed in (SIGNED, HASHED, AS_IS):
        yield bytes([WHOLE, signed]) + zipped(members)
        yield bytes([MEMBERS, signed]) + _written(members)


@contextmanager
def opened() -> Iterator[Callable[[bytes], None]]:
    warnings.filterwarnings("ignore", "Duplicate name")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "changed.zip")
        store = LogStore(Path(folder, "store"), "default")

        def check(data: bytes) -> None:
            kind, signed, rest = (*data[:1], WHOLE)[0] % 2, (*data[1:2], SIGNED)[0] % 3, data[2:]
            if kind == MEMBERS:
                members = _read(rest)
                if signed != AS_IS:
                    members = made_to_fit(members, KEY if signed == SIGNED else None)
                rest = zipped(members)
            file.write_bytes(rest)
            refused_or_imported(store, file, KEY if signed == SIGNED else None)
            assert {path.name for path in Path(folder).iterdir()} == {"changed.zip", "store"}

        yield check
        store.close()


def _written(members: Members) -> bytes:
    return b"".join(b"\n@@" + name.encode() + b"\n" + data for name, data in members)


def _read(data: bytes) -> Members:
    parts = _MEMBER.split(data)
    names = (name.decode("utf-8", "replace") for name in parts[1::2])
    return list(zip(names, parts[2::2], strict=True))
