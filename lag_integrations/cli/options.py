"""Options that several commands share, and the units that people write."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError

from lag_integrations.engine.quantization.scheme import Quantization

if TYPE_CHECKING:
    from lag_integrations.engine.engine import Engine

_TIME_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


class OutcomeName(str, Enum):
    """The outcomes of a run."""

    success = "success"
    failure = "failure"
    incomplete = "incomplete"
    unknown = "unknown"


def parse_size(text: str) -> int:
    """Return the bytes of ``500``, ``1.5GB`` or ``10GiB``."""
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise typer.BadParameter(
            f"{text!r} is no size; write it like 500MB, 10GB or 8GiB."
        ) from None


def parse_duration(text: str) -> float:
    """Return the seconds of ``45s``, ``12h`` or ``30d``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip().lower())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no duration; write it like 45s, 90m, 12h or 30d.")
    return float(found[1]) * _TIME_UNITS[found[2]]


def parse_since(text: str) -> float:
    """Return the Unix time of ``2026-01-31``, ``2026-01-31T12:00:00Z``, or so long ago: ``30d``.

    A time without a zone is local time.
    """
    try:
        # Python 3.10 does not read the Z.
        return datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text.strip())).timestamp()
    except (ValueError, OverflowError):
        pass
    try:
        return time.time() - parse_duration(text)
    except typer.BadParameter:
        raise typer.BadParameter(
            f"{text!r} is no time; write it like 2026-01-31, 2026-01-31T12:00:00Z or 30d."
        ) from None


def parse_where(text: str) -> dict[str, Any]:
    """Return a metadata filter."""
    try:
        where = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"it is not JSON ({error}).") from None
    if not isinstance(where, dict) or not where:
        raise typer.BadParameter('it must be a JSON object, like {"project": "x"}.')
    return where


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="Most logs to list.")]
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
        help="Embed the logs that wait for it, which makes them findable at once; else the next "
        "program that uses the store does it.",
    ),
]
ModelDevice = Annotated[
    str | None,
    typer.Option("--device", help="Device of the model; a GPU by default, if there is one."),
]
ModelDtype = Annotated[
    str, typer.Option("--dtype", help="Data type of the model's weights; auto is the checkpoint's.")
]
ModelQuantization = Annotated[
    Quantization | None,
    typer.Option(
        "--quantization", help="Bits of the model's weights on a CPU: int8, int4 or auto."
    ),
]
ChatTemplateFile = Annotated[
    Path | None,
    typer.Option(
        "--chat-template",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="Jinja chat template, for a model that has none.",
    ),
]


@dataclass(frozen=True)
class Loading:
    """How models are loaded, as the options of a command say.

    Attributes:
        device: Where they go.
        dtype: Data type of their weights.
        quantization: Bits of their weights.
        chat_template: File of a template.
        trust_remote_code: Whether they may run their own code.
    """

    device: str | None
    dtype: str
    quantization: Quantization | None
    chat_template: Path | None
    trust_remote_code: bool

    def load(self, name: str | None, **settings: Any) -> Engine:
        """Load a model.

        Args:
            name: Hub id, folder or packaged model; SmolLM2 if None.
            **settings: Further arguments of `Engine.load`.
        """
        from lag_integrations import packaged
        from lag_integrations.engine.engine import Engine

        template = None if self.chat_template is None else self.chat_template.read_text("utf-8")
        own_code: dict[str, Any] = {"trust_remote_code": True} if self.trust_remote_code else {}
        return Engine.load(
            packaged.resolve(name),
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
            chat_template=template,
            **own_code,
            **settings,
        )
