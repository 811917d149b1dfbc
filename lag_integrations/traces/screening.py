"""The redactor and the screen that each trace passes before it is stored."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lag_integrations.errors import TraceRefusedError
from lag_integrations.traces.provenance import UNTRUSTED_TOOLS
from lag_integrations.traces.reserved_metadata import QUARANTINED, lesson_sources
from lag_integrations.traces.trace import Trace

logger = logging.getLogger(__name__)

_MAX_REASON = 300
"""Characters: a reason is stored as a tag."""


@dataclass(frozen=True)
class Quarantine:
    """A screen's verdict: the trace is kept, but not recalled until somebody releases it.

    Attributes:
        reason: Why.
    """

    reason: str


@dataclass(frozen=True)
class Refuse:
    """A screen's verdict: the trace is not stored.

    Attributes:
        reason: Why.
    """

    reason: str


Screen = Callable[[Trace], Quarantine | Refuse | None]
"""Decides whether a trace may be recalled; None if it may."""
Redactor = Callable[[Trace], Trace | None]
"""Returns the trace to store, or None to drop it."""


@dataclass(frozen=True)
class Gate:
    """Redacts and screens each trace before it is stored, wherever it comes from.

    Attributes:
        screen: Called for each trace. If it fails, the trace is quarantined.
        redact: Called before the screen. If it fails, the trace is not stored.
        untrusted_tools: Tools that read what others wrote; see `provenance.message_sources`.
    """

    screen: Screen | None = None
    redact: Redactor | None = None
    untrusted_tools: Sequence[str] = UNTRUSTED_TOOLS

    def __call__(self, trace: Trace) -> Trace:
        """Return the trace to store. Logs no contents.

        Raises:
            TraceRefusedError: The trace is refused or dropped.
        """
        made_of = lesson_sources(trace.metadata)
        trace = self._redact(trace)
        if lesson_sources(trace.metadata) != made_of:
            raise TraceRefusedError(
                "redact= changed of which logs a lesson was made, so that it would outlive them; "
                "it is not stored. Keep the metadata lag_lesson_of."
            )
        verdict = None if self.screen is None else self._screen(trace, self.screen)
        if isinstance(verdict, Refuse):
            logger.info("screen= refused run %s; it is not stored.", trace.id)
            raise TraceRefusedError(f"screen= refused the trace: {verdict.reason}")
        if verdict is None:
            return trace
        logger.info("screen= put run %s into quarantine.", trace.id)
        metadata = {**trace.metadata, QUARANTINED: str(verdict.reason)[:_MAX_REASON]}
        return trace.model_copy(update={"metadata": metadata})

    def _redact(self, trace: Trace) -> Trace:
        if self.redact is None:
            return trace
        try:
            redacted = self.redact(trace)
            if redacted is not None and not isinstance(redacted, Trace):
                raise TypeError
        except Exception as error:
            # The type only, and no cause: a message may repeat what was to be redacted.
            logger.warning(
                "redact= failed (%s); run %s is not stored.", type(error).__name__, trace.id
            )
            failure = type(error).__name__
        else:
            if redacted is None:
                logger.info("redact= dropped run %s; it is not stored.", trace.id)
                raise TraceRefusedError("redact= returned no trace, so nothing is stored.")
            # Outcomes are given by the run's id.
            return redacted.model_copy(update={"id": trace.id})
        raise TraceRefusedError(
            f"redact= failed ({failure}), so the trace is not stored. It has to return a trace, or "
            "None to drop it."
        )

    def _screen(self, trace: Trace, screen: Screen) -> Quarantine | Refuse | None:
        try:
            verdict = screen(trace)
        except Exception as error:
            logger.warning(
                "screen= failed (%s); run %s is put into quarantine.",
                type(error).__name__,
                trace.id,
            )
            logger.debug("screen= failed.", exc_info=True)
            return Quarantine(f"screen= failed ({type(error).__name__})")
        if verdict is None or isinstance(verdict, Quarantine | Refuse):
            return verdict
        return Quarantine(
            f"screen= returned a {type(verdict).__name__}, not Quarantine, Refuse or None"
        )
