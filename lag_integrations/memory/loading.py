"""The one way from recalled logs to what a model is given of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from lag_integrations.engine.encodable import Encodable
from lag_integrations.errors import LAGError, LogNotFoundError, TraceError
from lag_integrations.kv.segment import Segment
from lag_integrations.memory.results import RecalledLog
from lag_integrations.memory.segment_indexer import SegmentIndexer
from lag_integrations.traces.steps import answer_step

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
        segment: Its segment; None if its last response, or the step, is to be read as text.
        encoded: Whether the segment had to be encoded first.
    """

    log: RecalledLog
    tokens: int
    segment: Segment | None = None
    encoded: bool = False


class SegmentLoader:
    """Loads logs of one namespace, or single steps of them.

    A step is a part of its log's segment. Where that does not hold all of it, it is a part of the
    segment of the whole trace, which is kept from then on, too.

    Args:
        indexer: Has the segments, and encodes what is missing.
        whole_traces: The same of whole traces.
    """

    def __init__(self, indexer: SegmentIndexer, whole_traces: SegmentIndexer) -> None:
        self._indexer = indexer
        self._whole_traces = whole_traces

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
                    source = self._source(log, files, engine)
                    segment = source.stored()
                    encoded = segment is None and missing == "encode"
                    if encoded:
                        _check_budget(source.tokens, budget)
                        segment = source.encoded()
                    elif segment is None:
                        source.indexer.request(log.id, engine)
                    if segment is not None:
                        log = source.log
                tokens = len(engine.tokens_of(log.text)) + 1 if segment is None else len(segment)
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
        sources = [self._source(log, files, engine) for log in logs]
        return [source.stored() or source.encoded() for source in sources]

    def _source(self, log: RecalledLog, files: Mapping[str, str | None], engine: Engine) -> _Source:
        """Return where the segment of a log or a step comes from.

        Raises:
            LogNotFoundError: The log is gone.
            LAGError: The model cannot read the trace.
        """
        if log.id not in files:
            raise LogNotFoundError(
                f"There is no log {log.id} in {self._indexer.namespace} (any more)."
            )
        if log.without_answer:
            encodable = self._indexer.encodable(log.trace, engine)
            answer = engine.step_tokens(log.trace, answer_step(log.trace), encodable)
            led = encodable.background if answer is None else answer.start
            if not led:  # the selection keeps the answer alone
                log = replace(log, without_answer=False)
                return _Source(log, self._indexer, files[log.id], engine, rendered=encodable)
            kept = range(led)
            return _Source(log, self._indexer, files[log.id], engine, kept, led, encodable)
        if log.step is None:
            return _Source(log, self._indexer, files[log.id], engine)
        if self._indexer.selection(engine).in_context:
            encodable = self._indexer.encodable(log.trace, engine)
            part = engine.step_tokens(log.trace, log.step, encodable)
            if part is not None:
                return _Source(log, self._indexer, files[log.id], engine, part, 0, encodable)
        encodable = self._whole_traces.encodable(log.trace, engine)
        part = engine.step_tokens(log.trace, log.step, encodable)
        if part is None:
            raise TraceError(f"The model's window does not hold step {log.step} of the trace.")
        file = self._whole_traces.files([log], engine).get(log.id)
        return _Source(log, self._whole_traces, file, engine, part, 0, encodable)


@dataclass(frozen=True)
class _Source:
    """Where the segment of a log comes from.

    Attributes:
        log: The log.
        indexer: Has it, or encodes it.
        file: Its file, if there is one.
        engine: The model.
        part: Which of its tokens are meant; all by default.
        background: How many of these led to what matters, see `Segment`.
        rendered: The trace as the model is to read it, where it had to be looked at.
    """

    log: RecalledLog
    indexer: SegmentIndexer
    file: str | None
    engine: Engine
    part: range | None = None
    background: int = 0
    rendered: Encodable | None = None

    @cached_property
    def encodable(self) -> Encodable:
        """The trace as the model is to read it."""
        return self.rendered or self.indexer.encodable(self.log.trace, self.engine)

    @property
    def tokens(self) -> int:
        """How many the segment will have."""
        return len(self.encodable.keep if self.part is None else self.part)

    def stored(self) -> Segment | None:
        """Return the stored segment, if there is a valid one."""
        segment = self.indexer.load(self.log.id, self.file, self.engine, lambda: self.encodable)
        return None if segment is None else self._cut(segment)

    def encoded(self) -> Segment:
        """Encode the log."""
        return self._cut(self.indexer.load_or_encode(self.log.id, self.encodable, self.engine))

    def _cut(self, segment: Segment) -> Segment:
        return segment if self.part is None else segment.part(self.part, self.background)


class _DoesNotFitError(Exception):
    """A log takes more tokens than are left."""


def _check_budget(tokens: int, budget: int | None) -> None:
    if budget is not None and tokens > budget:
        raise _DoesNotFitError(tokens)
