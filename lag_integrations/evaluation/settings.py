"""What an evaluation is: everything that decides its figures."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from pydantic import BaseModel, ConfigDict

from lag_integrations.engine import ATTENTION_TEMPERATURE, Placement
from lag_integrations.errors import EvaluationError

LogSource = Literal["gold", "self"]


class Settings(BaseModel):
    """The settings of an evaluation.

    Attributes:
        dataset: Name of the dataset.
        model: Hub id or folder.
        embedder: Hub id or folder; the packaged one if None.
        logs: Of what logs are made: each question's gold decomposition or worked solution, or what
            the standard agent did itself (the arm ``none`` on the seen questions).
        logs_from: Another dataset whose logs are stored instead: none of them fits.
        only_correct: Whether logs whose answer was wrong are not recalled.
        online: Whether the store begins empty and grows question by question.
        rounds: Most rounds.
        documents: Documents retrieved a round.
        k: Logs recalled a round.
        min_score: Least similarity of a log; the memory's own floor if None.
        max_tokens: Most tokens a round.
        placement: Where segments stand.
        best_last: Whether the most relevant log stands last.
        attention_temperature: Of the attention to segments.
        direct: Whether a round begins with the answer's tag.
        limit: Most seen questions; all if None.
        seed: Of the split and of the choice of questions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    model: str
    embedder: str | None = None
    logs: LogSource = "gold"
    logs_from: str | None = None
    only_correct: bool = True
    online: bool = False
    rounds: int
    documents: int
    k: int
    min_score: float | None = None
    max_tokens: int
    placement: Placement = "before_question"
    best_last: bool = True
    attention_temperature: float = ATTENTION_TEMPERATURE
    direct: bool = False
    limit: int | None = None
    seed: int = 0


def settle(path: Path, settings: Settings, fingerprint: str) -> None:
    """Write down what an evaluation is, or make sure that one that goes on is the same.

    Raises:
        EvaluationError: Another evaluation, or one of another model, is in this folder.
    """
    mine = {**settings.model_dump(), "fingerprint": fingerprint}
    if not path.exists():
        path.write_text(json.dumps({**mine, **_machine()}, indent=2), "utf-8")
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
    """What `settle` wrote.

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


def _machine() -> dict[str, Any]:
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "machine": f"{where}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "begun": date.today().isoformat(),
    }
