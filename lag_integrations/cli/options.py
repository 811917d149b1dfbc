"""The options that commands share, and the units that people write."""

from __future__ import annotations

import json
import re
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

_SIZE_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12} | {
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_TIME_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


class OutcomeName(str, Enum):
    """The outcomes of a run."""

    success = "success"
    failure = "failure"
    incomplete = "incomplete"
    unknown = "unknown"


def parse_size(text: str) -> int:
    """Bytes of ``500``, ``1.5GB``, ``10GiB``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    if found is None or found[2] not in _SIZE_UNITS:
        raise typer.BadParameter(f"{text!r} is no size; write it like 500MB, 10GB or 8GiB.")
    return int(float(found[1]) * _SIZE_UNITS[found[2]])


def parse_duration(text: str) -> float:
    """Seconds of ``45s``, ``12h``, ``30d``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip().lower())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no duration; write it like 45s, 90m, 12h or 30d.")
    return float(found[1]) * _TIME_UNITS[found[2]]


def parse_where(text: str) -> dict[str, Any]:
    """A metadata filter."""
    try:
        where = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"it is not JSON ({error}).") from None
    if not isinstance(where, dict) or not where:
        raise typer.BadParameter('it must be a JSON object, like {"project": "x"}.')
    return where


StorePath = Annotated[
    Path, typer.Argument(metavar="STORE", help="Folder of the store.", show_default=False)
]
LogId = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="Id of a log, or at least 4 of its first digits.", show_default=False
    ),
]
Namespace = Annotated[
    str,
    typer.Option("--namespace", "-n", envvar="KVLOG_NAMESPACE", help="Tenant of the store."),
]
LedgerUrl = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        envvar="KVLOG_LEDGER",
        help="SQLAlchemy URL of the ledger, if it is not in the folder.",
        show_envvar=True,
    ),
]
SegmentsUrl = Annotated[
    str | None,
    typer.Option(
        "--segments-url",
        envvar="KVLOG_SEGMENTS",
        help="Folder or fsspec URL of the segments, if they are not in the folder.",
    ),
]
IndexUrl = Annotated[
    str | None,
    typer.Option(
        "--index",
        envvar="KVLOG_INDEX",
        help="URL of a Chroma server, if the index is not in the folder.",
    ),
]
EmbedderName = Annotated[
    str | None,
    typer.Option(
        "--embedder",
        envvar="KVLOG_EMBEDDER",
        help="Name or folder of a sentence-transformers model; all-MiniLM-L6-v2 by default.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
WhereFilter = Annotated[
    Any,
    typer.Option(
        "--where",
        metavar="JSON",
        parser=parse_where,
        help='Only logs with such metadata: {"project": "x", "year": {"$gte": 2025}}.',
    ),
]
Outcomes = Annotated[
    list[OutcomeName] | None,
    typer.Option("--outcome", help="Only logs with this outcome; may be given several times."),
]
FlushAfter = Annotated[
    bool,
    typer.Option(
        "--flush",
        help="Embed what waits for it; else the next program that works with the store does.",
    ),
]
