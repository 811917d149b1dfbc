"""Traces from text and files: refused, or kept in a ledger as they are."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lag_integrations import Trace
from lag_integrations.errors import TraceError
from lag_integrations.store.store import LogStore
from lag_integrations.traces.reserved_metadata import JUDGED, NOT_RECALLED
from lag_integrations.traces.trace_file import TraceFile
from tests.conftest import qa

WORDS = (
    *('"messages":[', '"role":"', '"content":', '"tool_calls":[', '"tool_call_id":', '"args":'),
    *('"function":{', '"arguments":"', '"name":', '"id":', '"task":', '"earlier":[', '"status":'),
    *('"outcome":"', '"metadata":{', '"helped_by":[', '"started_at":', '"ended_at":', '"version":'),
    *(
        '"type":"text"',
        '"text":',
        '"invalid_tool_calls":[',
        '"thread_id":',
        '"sources":[',
        '"hash":',
    ),
    *("system", "user", "assistant", "tool", "developer", "human", "ai", "chat", "model"),
    *("success", "failure", "incomplete", "unknown", "error", "lag_scope", "lag_place", "verdict"),
    *("null", "true", "NaN", "Infinity", "1e999", "-0.0", "\\ud800", "\\u0000", "\ufeff", "\ufffe"),
    *(
        "2026-01-01T00:00:00Z",
        "9999-12-31T23:59:59-23:59",
        "0001-01-01T00:00:00+23:59",
        "[[[[",
        "9" * 20,
    ),
)
SUFFIXES = (None, ".json", ".jsonl", ".txt")
"""By an input's first byte: text for `Trace.from_json`, or a file of such a name."""


def seeds() -> Iterator[bytes]:
    calls = [{"name": "find", "args": {"q": [1, 2.5, None, "é"]}, "id": "1"}]
    function = {"name": "find", "arguments": '{"q": 1}'}
    steps = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Is it so?"}, {"type": "image"}]},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {
            "role": "tool",
            "content": "It is.",
            "tool_call_id": "1",
            "status": "error",
            "name": "find",
        },
        {"role": "assistant", "content": None, "tool_calls": [{"id": "2", "function": function}]},
        {"role": "ai", "content": "Yes.", "invalid_tool_calls": [{"name": "f", "args": "{"}]},
    ]
    source = {"id": "a-1", "documents": ["a"], "hash": "0", "version": None, "score": 0.5}
    metadata = {
        "user_id": "u",
        "thread_id": "t",
        "n": 2**53,
        "tags": ["a", 1.5],
        "sources": [source],
        "lag_scope": ["user_id"],
    }
    short = {"messages": steps, "task": "Is it?", "outcome": "success", "metadata": metadata}
    whole = Trace.from_messages(
        **short, earlier=Trace.from_messages(steps[:1]).messages, helped_by=("x",), id="run"
    )
    traces = [whole, qa("Is it?", "No.", ended_at="2026-01-01T00:00:00Z")]
    fails = Trace.from_messages([{"role": "user", "content": "Do it."}], outcome="failure")
    for kind in range(len(SUFFIXES)):
        first = bytes([kind])
        for trace in (*traces, fails):
            yield first + trace.to_json().encode()
        yield first + json.dumps(short).encode()
        yield first + json.dumps([short, json.loads(fails.to_json())], indent=1).encode()
        yield first + "\n\n".join(trace.to_json() for trace in traces).encode()


@contextmanager
def opened() -> Iterator[Callable[[bytes], None]]:
    with tempfile.TemporaryDirectory() as folder:
        ledger = LogStore(Path(folder, "store"), "default").ledger

        def check(data: bytes) -> None:
            suffix = SUFFIXES[(*data[:1], 0)[0] % len(SUFFIXES)]
            try:
                if suffix is None:
                    traces = [Trace.from_json(data[1:])]
                    ids = ledger.add(traces)
                else:
                    file = Path(folder, f"traces{suffix}")
                    file.write_bytes(data[1:])
                    traces = list(TraceFile(str(file)))
            except TraceError:
                return
            if suffix is not None:
                ids = ledger.add(traces)  # what a file may hold may be added
            found = ledger.get(ids)
            for key, trace in zip(ids, traces, strict=True):
                assert Trace.from_json(trace.to_json()).to_json() == trace.to_json()
                if not trace.has_response:
                    metadata = {**trace.metadata, **NOT_RECALLED}
                    trace = trace.model_copy(update={"metadata": metadata})
                if trace.helped_by and trace.outcome in ("success", "failure"):
                    trace = trace.model_copy(update={"metadata": {**trace.metadata, **JUDGED}})
                assert found[key].content_hash == trace.content_hash
                if ids.count(key) == 1:
                    assert found[key].to_json() == trace.to_json()
            ledger.delete(list(found))
            assert not list(ledger.ids())

        yield check
