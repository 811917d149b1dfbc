"""Reading traces from JSON and JSON Lines files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from lag_integrations.errors import TraceError
from lag_integrations.traces.reserved_metadata import refuse_reserved
from lag_integrations.traces.trace import Trace

_SHORT_FORM = {"messages", "task", "outcome", "metadata"}
_LINES = (".jsonl", ".ndjson")


class TraceFile:
    """An iterable of the traces in a file, which is read in each iteration.

    A file is JSON (one trace, or a list of them) or has one JSON object a line. A trace is what
    `Trace.to_json` returns, or ``{"messages": […]}`` with optional ``task``, ``outcome`` and
    ``metadata``.

    Args:
        name: Path of the file; ``-`` is stdin.
    """

    def __init__(self, name: str) -> None:
        self.name = "stdin" if name == "-" else name
        self._path = Path(name)
        self._data = sys.stdin.buffer.read() if name == "-" else None

    def __iter__(self) -> Iterator[Trace]:
        try:
            with self._open() as file:
                has_lines = self._has_lines(file)
                file.seek(0)
                if has_lines:
                    yield from self._read_lines(file)
                else:
                    yield from self._read_document(file)
        except OSError as error:
            raise TraceError(f"{self.name} cannot be read: {error.strerror or error}.") from error

    def _open(self) -> IO[bytes]:
        return self._path.open("rb") if self._data is None else BytesIO(self._data)

    def _has_lines(self, file: IO[bytes]) -> bool:
        """Return whether the file has one trace a line, by its name or its first lines."""
        if self._data is None and self._path.suffix.lower() in (*_LINES, ".json"):
            return self._path.suffix.lower() in _LINES
        first = b""
        for line in file:
            if first and line.strip():
                return True
            if not first and line.strip():
                try:
                    json.loads(line)
                except (ValueError, RecursionError):
                    return False
                first = line
        return False

    def _read_lines(self, file: IO[bytes]) -> Iterator[Trace]:
        for number, line in enumerate(file, 1):
            if line.strip():
                place = f"{self.name}, line {number}"
                yield _trace(_parsed(line, place), place)

    def _read_document(self, file: IO[bytes]) -> Iterator[Trace]:
        value = _parsed(file.read(), self.name)
        if not isinstance(value, list):
            yield _trace(value, self.name)
            return
        for number, item in enumerate(value, 1):
            yield _trace(item, f"{self.name}, trace {number}")


def _parsed(data: bytes, place: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        where = f" at line {error.lineno}, column {error.colno}"
        raise TraceError(f"{place}: not JSON ({error.msg}{where}).") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, a number or nesting too large
        raise TraceError(f"{place}: not JSON in UTF-8 ({error}).") from None


def _trace(value: Any, place: str) -> Trace:
    if not isinstance(value, dict):
        raise TraceError(f"{place}: a trace must be a JSON object, not a {type(value).__name__}.")
    try:
        if "messages" in value and value.keys() <= _SHORT_FORM:
            if not isinstance(value["messages"], list):
                raise TraceError("messages must be a list")
            trace = Trace.from_messages(**value)
        else:
            trace = Trace.from_json(json.dumps(value))
        trace.require_response()
        refuse_reserved(trace.metadata)
        trace.to_json()  # some text cannot be written: halves of surrogate pairs
    except TraceError as error:
        raise TraceError(f"{place}: {error}") from None
    except (TypeError, AttributeError, ValueError, RecursionError) as error:
        raise TraceError(f"{place}: malformed ({type(error).__name__}: {error}).") from None
    return trace
