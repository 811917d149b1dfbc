"""How recalled logs are given to a model: the defaults, or what its calibration found."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lag_integrations.engine.segment_placement import Placement
from lag_integrations.engine.token_selection import LastTurn, Selection, TaskAndLastTurns
from lag_integrations.errors import CalibrationError
from lag_integrations.runtime.cache_folder import cache_folder

logger = logging.getLogger(__name__)

VERSION = 3
"""Of the built-in set, of the rule that chooses, and of what a temperature does; calibrations of
another one are not used."""

Kind = Literal["repeated", "several", "dropped", "instance", "foreign"]
"""The kinds of question that a calibration asks, see `calibration.cases`."""

LogForm = Literal["kv", "text"]
"""In which form recalled logs are given to a model."""

SELECTIONS: dict[str, Selection] = {
    selection.name: selection for selection in (TaskAndLastTurns(), LastTurn())
}
"""The selections that are compared, by name."""


class LogSettings(BaseModel):
    """How recalled logs are given to a model.

    Attributes:
        form: As KV, or as text where KV is clearly worse.
        selection: Name of what is kept of a trace, a key of `SELECTIONS`.
        placement: Where segments stand.
        temperature: Attention temperature of segments; the lower, the more a log's last response
            counts, and the less what led to it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: LogForm
    selection: str
    placement: Placement
    temperature: float = Field(gt=0)

    @property
    def name(self) -> str:
        """The settings of KV, as figures name them."""
        return f"{self.selection}, {self.placement}, {self.temperature}"


DEFAULTS = LogSettings(
    form="kv",
    selection=TaskAndLastTurns().name,
    placement="before_turn",
    temperature=0.9,
)
"""For a model that was not calibrated: the best compromise on the ladder (docs/evaluation.md)."""


class Figures(BaseModel):
    """How a model did on the built-in set in one setting.

    Attributes:
        setting: The setting: ``none``, ``text``, or selection, placement and temperature.
        value: What settings are compared by, see `choose.Score.value`; higher is better.
        likelihood: By kind of question, mean log likelihood of the right answer, nats a token.
        exact: Share of the questions whose right answer is the greedy one.
        parroted: Share of the new instances for which the old answer is likelier than the right
            one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    setting: str
    value: float
    likelihood: dict[Kind, float]
    exact: float
    parroted: float


class Calibration(LogSettings):
    """The settings for one model.

    Attributes:
        fingerprint: The model's fingerprint id.
        gain: What KV in this setting gains against text, in the mean over questions.
        gain_interval: The 95 % interval of `gain`.
        repetition: Share of repeated runs of three words in greedy answers with KV.
        fluency: Mean log likelihood of greedy answers with KV, under the same model reading the
            logs as text, nats a token.
        figures: All settings that were compared.
        tokens: Tokens that the model read for it.
        seconds: How long it took.
        model: The model's name, for people.
        version: See `VERSION`.
    """

    fingerprint: str
    gain: float
    gain_interval: tuple[float, float]
    repetition: float
    fluency: float
    figures: tuple[Figures, ...]
    tokens: int
    seconds: float
    model: str
    version: int = VERSION

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Read what ``model_dump_json`` wrote.

        Raises:
            CalibrationError: It is damaged, or of another version of this package.
        """
        try:
            found = cls.model_validate_json(text)
        except ValidationError as error:
            raise CalibrationError(
                "This is not a calibration, or a damaged one; calibrate the model again (kvlog "
                f"calibrate). ({error.error_count()} problems, the first: "
                f"{error.errors()[0]['msg']})"
            ) from None
        if found.version != VERSION or found.selection not in SELECTIONS:
            raise CalibrationError(
                f"The calibration is of version {found.version}, this package has version "
                f"{VERSION}; calibrate the model again (kvlog calibrate)."
            )
        return found


def saved(fingerprint: str) -> Calibration | None:
    """Return a model's calibration from the user's cache folder, if there is a usable one."""
    path = _path(fingerprint)
    try:
        found = Calibration.from_json(path.read_text("utf-8"))
        if found.fingerprint != fingerprint:
            raise CalibrationError(f"It is of another model ({found.fingerprint[:12]}).")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, CalibrationError) as error:
        logger.warning("The calibration in %s is not used: %s", path, error)
        return None
    return found


def save(calibration: Calibration) -> Path:
    """Write a calibration to the user's cache folder, where every process finds it.

    Raises:
        CalibrationError: It cannot be written.
    """
    path = _path(calibration.fingerprint)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(calibration.model_dump_json(indent=2))
        os.replace(scratch, path)
    except OSError as error:
        raise CalibrationError(
            f"The calibration cannot be written to {path.parent} ({error}); set LAG_CACHE to a "
            "folder that can be written to."
        ) from error
    return path


def _path(fingerprint: str) -> Path:
    return cache_folder() / "calibrations" / f"{fingerprint}.json"
