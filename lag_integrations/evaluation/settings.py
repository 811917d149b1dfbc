"""What an evaluation is: everything that decides its figures."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from lag_integrations.engine.log_settings import DEFAULTS, VERSION, LogSettings
from lag_integrations.errors import EvaluationError
from lag_integrations.evaluation.agent_loop import Loop
from lag_integrations.evaluation.machine import machine
from lag_integrations.evaluation.questions import Dataset

LogSource = Literal["gold", "self", "dataset", "other"]


class Settings(Loop):
    """The settings of an evaluation, those of its agents included.

    Attributes:
        dataset: Name of the dataset.
        model: Hub id or folder.
        embedder: Hub id or folder; the packaged one if None.
        logs: Of what logs are made: each question's gold decomposition or worked solution
            (``gold``), what the standard agent did itself (``self``), traces that come with the
            dataset, or the logs of another dataset, none of which fits (``other``).
        logs_from: That other dataset.
        only_correct: Whether logs whose answer was wrong are not recalled; the gold answers say.
        online: Whether the store begins empty and grows question by question.
        limit: Most seen questions; all if None.
        seed: Of the split and of the choice of questions.
    """

    dataset: str
    model: str
    embedder: str | None = None
    logs: LogSource = "gold"
    logs_from: str | None = None
    only_correct: bool = True
    online: bool = False
    limit: int | None = None
    seed: int = 0


def settle(
    path: Path,
    settings: Settings,
    dataset: Dataset,
    fingerprint: str,
    given: LogSettings = DEFAULTS,
) -> None:
    """Write down what an evaluation is, or make sure that one that goes on is the same.

    Raises:
        EvaluationError: Another evaluation, or one of other data or another model, is there.
    """
    write_or_compare(
        path,
        {
            **settings.model_dump(),
            "seen": len(dataset.seen),
            "unseen": len(dataset.unseen),
            "related": len(dataset.related),
            "searched": len(dataset.documents),
            "data": dataset.digest,
            "fingerprint": fingerprint,
            "given": left_open(given),
        },
    )


def left_open(given: LogSettings) -> dict[str, Any]:
    """Return what settings leave open: a calibration may be made meanwhile, or defaults change."""
    return given.model_dump(include={"selection", "placement", "temperature"}) | {
        "version": VERSION
    }


def write_or_compare(path: Path, mine: Mapping[str, Any]) -> None:
    """Write down what decides an evaluation's figures, or make sure that the same is there.

    Args:
        path: The file.
        mine: What decides them, as JSON.

    Raises:
        EvaluationError: Something else is there.
    """
    if not path.exists():
        # Shards may begin at once: none may see half of it.
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        scratch.write_text(json.dumps({**mine, **_machine()}, indent=2), "utf-8")
        scratch.replace(path)
        return
    there = described(path)
    other = [name for name in mine if there.get(name) != mine[name]]
    if other:
        told = ", ".join(f"{name} {there.get(name)!r} (now {mine[name]!r})" for name in other)
        raise EvaluationError(
            f"{path.parent} holds an evaluation with other settings: {told}. Give another folder "
            "with --out, or the same settings to go on."
        )


def described(path: Path) -> Mapping[str, Any]:
    """Read what `settle` wrote.

    Raises:
        EvaluationError: There is no such evaluation.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"There is no evaluation in {path.parent} ({error}).") from error
    if not isinstance(found, dict):
        raise EvaluationError(f"{path} does not describe an evaluation.")
    return found


def headline(described: Mapping[str, Any]) -> str:
    """Return a sentence that says what an evaluation is."""
    logs = {
        "gold": "made of gold decompositions and solutions, with the answers of seen questions",
        "self": "what the model did itself",
        "dataset": "those that come with the dataset",
        "other": f"those of {described.get('logs_from')}, none of which fits",
    }
    told = logs.get(str(described.get("logs")), "unknown")
    gate = ", wrong ones not recalled, as the gold answers say"
    right = gate if described.get("only_correct") else ""
    count = described.get("related")
    related = f" and {count} that are related to seen ones" if count else ""
    return (
        f"{described.get('dataset')}, {described.get('seen')} seen and {described.get('unseen')} "
        f"unseen questions{related}, {described.get('searched')} documents; "
        f"{described.get('model')}; "
        f"logs: {told}{right}."
    )


def _machine() -> dict[str, Any]:
    return {
        "machine": machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "begun": date.today().isoformat(),
    }
