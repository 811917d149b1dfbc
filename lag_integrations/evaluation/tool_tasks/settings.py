"""What an evaluation of tool tasks is: everything that decides its figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lag_integrations.engine.log_settings import LogSettings
from lag_integrations.evaluation.settings import left_open, write_or_compare
from lag_integrations.evaluation.tool_tasks.agent import ToolLoop


class ToolTaskSettings(ToolLoop):
    """The settings, those of the agent included.

    Attributes:
        dataset: Name of the dataset.
        model: Hub id or folder.
        embedder: Hub id or folder; the packaged one if None.
        logs: Of what logs are made: the right calls of the seen tasks (``gold``), or what the model
            did with them without logs (``self``).
        seed: Of the split.
    """

    dataset: Literal["bfcl"] = "bfcl"
    model: str
    embedder: str | None = None
    logs: Literal["gold", "self"] = "gold"
    seed: int = 0


def settle(
    path: Path,
    settings: ToolTaskSettings,
    *,
    seen: int,
    data: str,
    fingerprint: str,
    given: LogSettings,
) -> None:
    """Write down what an evaluation is, or make sure that one that goes on is the same.

    Args:
        path: The file.
        settings: The settings.
        seen: How many tasks are seen.
        data: Version of the data.
        fingerprint: The model's.
        given: How it is given logs.

    Raises:
        EvaluationError: Another evaluation is there.
    """
    write_or_compare(
        path,
        {
            **settings.model_dump(),
            "seen": seen,
            "data": data,
            "fingerprint": fingerprint,
            "given": left_open(given),
        },
    )


def headline(described: Mapping[str, Any]) -> str:
    """Return a sentence that says what an evaluation is."""
    logs = {
        "gold": f"of the right calls of {described.get('seen')} other tasks",
        "self": f"of what the model did with {described.get('seen')} other tasks",
    }
    return (
        f"BFCL {described.get('data')}, multi_turn_base; {described.get('model')}; at most "
        f"{described.get('rounds')} model calls a turn, {described.get('k')} logs a call, "
        f"{described.get('max_tokens')} tokens an answer; logs: "
        f"{logs.get(str(described.get('logs')), 'unknown')}."
    )
