"""Data files, read and checked: an error says which file and row, and what was expected."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from lag_integrations.errors import EvaluationError

Checked = TypeVar("Checked")


class Folder:
    """The folder of a dataset.

    Args:
        data: The folder it is in.
        *names: What it may be called; ``.`` is that folder itself.

    Raises:
        EvaluationError: There is no such folder.
    """

    def __init__(self, data: Path, *names: str) -> None:
        if not data.is_dir():
            raise EvaluationError(f"There is no folder {data}.")
        folders = [data / name for name in names if (data / name).is_dir()]
        if not folders:
            raise EvaluationError(
                f"{data} has no folder {' or '.join(names)}; give the folder that holds it."
            )
        self._path = folders[0]

    def find(self, *names: str) -> Path | None:
        """Return the first of some files that exists."""
        return next((self._path / name for name in names if (self._path / name).is_file()), None)

    def file(self, *names: str) -> Path:
        """Return the first of some files that exists.

        Raises:
            EvaluationError: None does.
        """
        path = self.find(*names)
        if path is None:
            raise EvaluationError(f"{self._path} has no {' or '.join(names)}; put it there.")
        return path


def read_rows(path: Path, kind: type[Checked]) -> list[Checked]:
    """Read the rows of a JSON file that holds a list.

    Raises:
        EvaluationError: It cannot be read, or holds something else.
    """
    values = read_json(path)
    if not isinstance(values, list):
        raise EvaluationError(f"{path} holds no list of rows; is it the right file?")
    return checked(kind, ((f"{path}, row {n}", value) for n, value in enumerate(values)))


def read_lines(path: Path, kind: type[Checked]) -> list[Checked]:
    """Read the rows of a JSONL file; empty lines are left out.

    Raises:
        EvaluationError: It cannot be read, or holds something else.
    """
    return [row for _, row in read_places(path, kind)]


def read_places(path: Path, kind: type[Checked]) -> list[tuple[str, Checked]]:
    """Read the rows of a JSONL file like `read_lines`, each with its place, for people.

    Raises:
        EvaluationError: It cannot be read, or holds something else.
    """
    # Not splitlines: JSON may hold separators that it takes for ends of lines.
    lines = {
        f"{path}, line {number}": line
        for number, line in enumerate(_text(path).split("\n"), 1)
        if line.strip()
    }
    rows = checked(kind, ((place, _parsed(line, place)) for place, line in lines.items()))
    return list(zip(lines, rows, strict=True))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        EvaluationError: It cannot be read.
    """
    return _parsed(_text(path), str(path))


def checked(kind: type[Checked], values: Iterable[tuple[str, Any]]) -> list[Checked]:
    """Validate values as objects of a kind.

    Args:
        kind: What they should be.
        values: Each with its place, for people.

    Raises:
        EvaluationError: One is something else.
    """
    adapter = TypeAdapter(kind)
    rows = []
    for place, value in values:
        try:
            rows.append(adapter.validate_python(value))
        except ValidationError as error:
            # Without what stands there: it may be long.
            reasons = (
                f"{'.'.join(map(str, item['loc'])) or 'it'}: {item['msg']}"
                for item in error.errors()
            )
            raise EvaluationError(f"{place} is not as expected: {'; '.join(reasons)}.") from error
    return rows


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path} is not UTF-8 ({error.reason}).") from error


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise EvaluationError(f"{place}: not JSON ({error.msg} at {where}).") from error
    except (ValueError, RecursionError) as error:  # a number or nesting too large
        raise EvaluationError(f"{place}: not JSON that can be read ({error}).") from error
