"""Metadata filters: refused, or they find what a plain evaluation of them finds."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from operator import eq, ge, gt, le, lt
from pathlib import Path
from typing import Any

from lag_integrations.errors import StoreError, TraceError
from lag_integrations.store.store import LogStore
from tests.conftest import qa

WORDS = (
    *('"$and":[', '"$or":[', '"$in":[', '"$nin":[', '"$eq":', '"$ne":', '"$gt":', '"$gte":'),
    *('"$lt":', '"$lte":', '"a":', '"b":', '"c":', '"sources":', "\n", "true", "false", "null"),
    *("NaN", "Infinity", "-Infinity", "1e308", "-0.0", "9007199254740993", "\\u0000", "\\ufffe"),
    *("\\ud800", "\\ud83d\\ude00", "\ufffd", '"hash":', '"documents":[', '"id":', "lag_source"),
)
KEPT: tuple[dict[str, Any], ...] = (
    {},
    {"a": 1, "b": "x", "c": True},
    {"a": 1.5, "b": ["x", "y", 2, False], "c": False},
    {"a": "1", "b": "", "c": ["true", None, {"x": 1}]},
    {"a": 2**53 + 1, "b": "x" * 501, "c": "é\0"},
    {"a": float("nan"), "b": "\U0001f600", "c": -0.0},
    {"a": float("inf"), "b": [], "c": None, "k" * 129: 1, "$k": 1},
    {"sources": [{"id": "d-1", "documents": ["d", "/d"], "hash": "0"}, "own", 3]},
    {"sources": "own", "a": [1, [2], "z"], "\0": "nul", "\ufffd": "mark"},
)
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {"$gt": gt, "$gte": ge, "$lt": lt, "$lte": le}


def seeds() -> Iterator[bytes]:
    for where in (
        {"a": 1},
        {"a": {"$gt": 0, "$lte": 1.5}, "b": {"$ne": "x"}},
        {"$or": [{"a": {"$in": [1, "1", True]}}, {"$and": [{"c": False}, {"b": {"$nin": ["y"]}}]}]},
        {"sources": "d-1"},
        {"c": {"$gte": "a"}},
    ):
        yield json.dumps(where).encode()
        for metadata in KEPT:
            yield json.dumps(where).encode() + b"\n" + json.dumps(metadata).encode()


@contextmanager
def opened() -> Iterator[Callable[[bytes], None]]:
    with tempfile.TemporaryDirectory() as folder:
        ledger = LogStore(Path(folder, "store"), "default").ledger
        kept = {}
        for number, metadata in enumerate(KEPT):
            trace = qa(f"Is {number} so?", "Yes.", metadata=metadata)
            kept[ledger.add([trace])[0]] = trace.metadata

        def check(data: bytes) -> None:
            """An input's first line is a filter; the second, if any, the metadata of one more."""
            first, _, second = data.partition(b"\n")
            try:
                where = json.loads(first)
                metadata = json.loads(second) if second else None
            except (ValueError, RecursionError):
                return
            logs = dict(kept)
            if metadata is not None:
                try:
                    trace = qa("Is it so?", "Yes.", metadata=metadata)
                    (added,) = ledger.add([trace])
                except TraceError:
                    return
                logs[added] = trace.metadata
            try:
                found = set(ledger.ids(where))
            except StoreError:
                pass
            else:
                fitting = (key for key, one in logs.items() if where is None or _fits(one, where))
                assert found == set(fitting)
            if metadata is not None:
                ledger.delete([added])

        yield check


def _fits(metadata: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    return all(_holds(metadata, key, value) for key, value in where.items())


def _holds(metadata: Mapping[str, Any], key: str, asked: Any) -> bool:
    if key in ("$and", "$or"):
        return (all if key == "$and" else any)(_fits(metadata, part) for part in asked)
    values = _values(metadata, key)
    operators = asked.items() if isinstance(asked, dict) else [("$eq", asked)]
    return all(_compares(values, name, operand) for name, operand in operators)


def _compares(values: list[Any], name: str, operand: Any) -> bool:
    if name in ("$ne", "$nin"):
        return not _compares(values, "$eq" if name == "$ne" else "$in", operand)
    if name == "$in":
        return any(_compares(values, "$eq", one) for one in operand)
    compare, operand = _ORDERS.get(name, eq), _comparable(operand)
    return any(type(value) is type(operand) and compare(value, operand) for value in values)


def _values(metadata: Mapping[str, Any], key: str) -> list[Any]:
    """What can be asked for under a key, as the documentation of filters has it."""
    values: list[Any] = []
    for name, value in metadata.items():
        if _plain(name) != _plain(key) or len(name) > 128 or name.startswith("$"):
            continue
        for item in value if isinstance(value, list) else [value]:
            if name == "sources" and _is_source(item):
                known = [*item["documents"], item.get("id")]
                values += [one for one in known if isinstance(one, str) and one]
            elif isinstance(item, str | int | float):
                values.append(item)
    texts = (_comparable(value) for value in values)
    return [
        one for one in texts if one is not None and not (isinstance(one, str) and len(one) > 500)
    ]


def _is_source(item: Any) -> bool:
    return (
        isinstance(item, dict)
        and isinstance(item.get("hash"), str)
        and isinstance(item.get("documents"), list)
    )


def _comparable(value: Any) -> str | bool | float | None:
    """Numbers are compared as floats, whole ones too; None for one that is too large."""
    if isinstance(value, str):
        return _plain(value)
    if isinstance(value, bool):
        return value
    try:
        return float(value)
    except OverflowError:
        return None


def _plain(text: str) -> str:
    """What no database can keep stands for the same."""
    joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return joined.replace("\0", "\ufffd").replace("\ufffe", "\ufffd")
