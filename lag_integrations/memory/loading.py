"""The one way from recalled logs to what a model is given of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lag_integrations.errors import LAGError, LogNotFoundError
from lag_integrations.kv.segment import Segment
from lag_integrations.memory.results import RecalledLog
from lag_integrations.memory.segment_indexer import SegmentIndexer

if TYPE_CHECKING:
    from lag_integrations.engine.engine import Engine

logger = logging.getLogger(__name__)

MissingSegments = Literal["encode", "text"]
"""What to do with a log that has no valid segment: encode it now, or read its last response."""


@dataclass(frozen=True)
class LoadedLog:
    """A log, ready for a model.

    Attributes:
        log: The log.
        tokens: How many it takes in the prompt.
        segment: Its segment; None if its last response is to be read as text.
        encoded: Whether the segment had to be encoded first.
    """

    log: RecalledLog
    tokens: int
    segment: Segment | None = None
    encoded: bool = False


class SegmentLoader:
    """Loads logs of one namespace.

    Args:
        indexer: Has the segments, and encodes what is missing.
    """

    def __init__(self, indexer: SegmentIndexer) -> None:
        self._indexer = indexer

    def load(
        self,
        logs: Sequence[RecalledLog],
        engine: Engine,
        *,
        budget: int | None,
        missing: MissingSegments,
        as_text: bool,
    ) -> list[LoadedLog]:
        """Load what fits; see `LogMemory.load`."""
        files = {} if as_text else self._indexer.files(logs, engine)
        loaded = []
        for log in logs:
            try:
                segment, encoded = None, False
                if not as_text:
                    segment = self._stored(log, files, engine)
                    encoded = segment is None and missing == "encode"
                    if encoded:
                        segment = self._encode(log, engine, budget)
                    elif segment is None:
                        self._indexer.request(log.id, engine)
                tokens = (
                    len(engine.tokens_of(log.trace.last_response)) + 1
                    if segment is None
                    else len(segment)
                )
                _check_budget(tokens, budget)
            except (LAGError, RuntimeError, OSError) as error:  # of torch: out of memory
                logger.warning("Log %s is not used: %s", log.id, error)
                continue
            except _DoesNotFitError as error:
                logger.info("Log %s does not fit the window: it has %s tokens.", log.id, error)
                continue
            budget = None if budget is None else budget - tokens
            loaded.append(LoadedLog(log, tokens, segment, encoded))
        return loaded

    def load_all(self, logs: Sequence[RecalledLog], engine: Engine) -> list[Segment]:
        """Load the segments of all logs; see `LogMemory.segments`."""
        files = self._indexer.files(logs, engine)
        return [self._stored(log, files, engine) or self._encode(log, engine, None) for log in logs]

    def _stored(
        self, log: RecalledLog, files: Mapping[str, str | None], engine: Engine
    ) -> Segment | None:
        """Return the stored segment of a log, if there is a valid one.

        Raises:
            LogNotFoundError: The log is gone.
        """
        if log.id not in files:
            raise LogNotFoundError(
                f"There is no log {log.id} in {self._indexer.namespace} (any more)."
            )
        return self._indexer.load(log.id, log.trace, files[log.id], engine)

    def _encode(self, log: RecalledLog, engine: Engine, budget: int | None) -> Segment:
        """Encode a log, if it will fit."""
        encodable = self._indexer.encodable(log.trace, engine)
        _check_budget(len(encodable.keep), budget)
        return self._indexer.load_or_encode(log.id, log.trace, encodable, engine)


class _DoesNotFitError(Exception):
    """A log takes more tokens than are left."""


def _check_budget(tokens: int, budget: int | None) -> None:
    if budget is not None and tokens > budget:
        raise _DoesNotFitError(tokens)
