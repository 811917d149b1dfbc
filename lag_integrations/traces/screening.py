"""What a trace passes before the ledger has it: a redactor, then a screen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lag_integrations.errors import TraceRefusedError
from lag_integrations.traces.provenance import QUARANTINED, UNTRUSTED_TOOLS
from lag_integrations.traces.trace import Trace

logger = logging.getLogger(__name__)

_LONGEST = 300
"""Characters of a reason: it is looked up."""


@dataclass(frozen=True)
class Quarantine:
    """A screen's word: the trace is kept, but not recalled until somebody releases it.

    Attributes:
        reason: Why.
    """

    reason: str


@dataclass(frozen=True)
class Refuse:
    """A screen's word: the trace is not stored.

    Attributes:
        reason: Why.
    """

    reason: str


Screen = Callable[[Trace], Quarantine | Refuse | None]
"""Says whether a trace may be recalled; None if it may."""
Redactor = Callable[[Trace], Trace | None]
"""Returns a trace as it may be stored; None if it may not."""


@dataclass(frozen=True)
class Gate:
    """What each trace passes before it is recorded, wherever it comes from.

    Attributes:
        screen: Asked for each trace, if there is one. Where it fails, the trace is quarantined.
        redact: Changes each trace first. Where it fails, the trace is not stored.
        untrusted_tools: Tools that read what others wrote; see `provenance.message_sources`.
    """

    screen: Screen | None = None
    redact: Redactor | None = None
    untrusted_tools: Sequence[str] = UNTRUSTED_TOOLS

    def __call__(self, trace: Trace) -> Trace:
        """Return a trace as it is to be stored.

        Raises:
            TraceRefusedError: It is not to be stored. What is logged of that tells no contents.
        """
        trace = self._redacted(trace)
        word = None if self.screen is None else self._screened(trace, self.screen)
        if isinstance(word, Refuse):
            logger.info("screen= refused run %s; it is not stored.", trace.id)
            raise TraceRefusedError(f"screen= refused the trace: {word.reason}")
        if word is None:
            return trace
        logger.info("screen= put run %s into quarantine.", trace.id)
        metadata = {**trace.metadata, QUARANTINED: str(word.reason)[:_LONGEST]}
        return trace.model_copy(update={"metadata": metadata})

    def _redacted(self, trace: Trace) -> Trace:
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
            # Its run is asked for by its id, whatever is said of it.
            return redacted.model_copy(update={"id": trace.id})
        raise TraceRefusedError(
            f"redact= failed ({failure}), so the trace is not stored. It has to return a trace, or "
            "None to drop it."
        )

    def _screened(self, trace: Trace, screen: Screen) -> Quarantine | Refuse | None:
        try:
            word = screen(trace)
        except Exception as error:
            logger.warning(
                "screen= failed (%s); run %s is put into quarantine.",
                type(error).__name__,
                trace.id,
            )
            logger.debug("screen= failed.", exc_info=True)
            return Quarantine(f"screen= failed ({type(error).__name__})")
        if word is None or isinstance(word, Quarantine | Refuse):
            return word
        return Quarantine(
            f"screen= returned a {type(word).__name__}, not Quarantine, Refuse or None"
        )
