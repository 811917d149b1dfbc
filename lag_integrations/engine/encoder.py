"""Traces to segments."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from dataclasses import replace

from lag_integrations.engine.chat_template import ChatTemplate
from lag_integrations.engine.encodable import Encodable, batches
from lag_integrations.engine.inference_loop import InferenceLoop
from lag_integrations.engine.runner import ModelRunner
from lag_integrations.engine.scheduler import Scheduler
from lag_integrations.engine.token_selection import Selection
from lag_integrations.kv.cache import beginning
from lag_integrations.kv.checks import check_segment
from lag_integrations.kv.encode import encode_rows
from lag_integrations.kv.forward import Unread
from lag_integrations.kv.segment import Segment
from lag_integrations.traces.trace import Trace

logger = logging.getLogger(__name__)

_AT_ONCE_CPU, _AT_ONCE = 256, 8192
"""Tokens of traces that are encoded together; what is longer comes alone."""

_WORTH_A_PASS = 16
"""Tokens that are read apart, once, if the traces of a batch begin with them alike."""


class Encoder:
    """Encodes traces, those of like length together.

    Args:
        runner: Runs the forward passes.
        scheduler: Says how much is read at once.
        loop: Runs them between the passes of answers.
        chat_template: Renders the traces.
    """

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        loop: InferenceLoop,
        chat_template: ChatTemplate,
    ) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._loop = loop
        self._chat_template = chat_template

    def encodable(self, trace: Trace, selection: Selection, cache_salt: str = "") -> Encodable:
        """Render a trace and select of it; see `Engine.encodable`."""
        window = self._runner.positions.window
        found = Encodable.of(trace, selection, self._chat_template, window)
        return replace(found, cache_salt=cache_salt)

    def encode_all(self, traces: Sequence[Encodable]) -> list[Segment]:
        """Encode many traces, batch by batch; return their segments in order."""
        segments: dict[int, Segment] = {}
        for batch in self.plan_batches(traces):
            found = self.encode_batch([traces[index] for index in batch])
            segments.update(zip(batch, found, strict=True))
        return [segments[index] for index in range(len(traces))]

    @property
    def batch_tokens(self) -> int:
        """Tokens that are worth reading at once."""
        return _AT_ONCE_CPU if self._runner.model.device.type == "cpu" else _AT_ONCE

    def plan_batches(self, traces: Sequence[Encodable]) -> list[list[int]]:
        """Return which of the traces, by their indices, are encoded in one pass each."""
        known = [
            (
                trace.cache_salt,
                self._runner.prefixes.match_length(trace.token_ids, salt=trace.cache_salt),
            )
            for trace in traces
        ]
        found = []
        # Those of which the same is known: of a run that was just generated, nearly all.
        for salted in dict.fromkeys(known):
            members = [index for index, its in enumerate(known) if its == salted]
            _, (length, _) = salted
            unread = [len(traces[index]) - length for index in members]
            for batch in batches(unread, length, self.batch_tokens):
                found.append([members[place] for place in batch])
        return found

    def encode_batch(self, traces: Sequence[Encodable], *, patience: float = 0.0) -> list[Segment]:
        """Encode the traces of one batch, of one salt; what they begin with alike is read once.

        Args:
            traces: The traces.
            patience: Most seconds to wait for answers to end; then encoding takes turns with them.

        Returns:
            Their segments, in order; each as it would be alone, up to rounding.
        """
        return self._loop.in_parts(self._encode(traces), patience)

    def _encode(self, traces: Sequence[Encodable]) -> Generator[Unread, None, list[Segment]]:
        """Encode traces; what it yields is read, together with the tokens of answers."""
        if len(traces) > 1 and self._scheduler.part() < sum(map(len, traces)):
            segments = []  # answers are being written: a batch would hold them up
            for trace in traces:
                segments += yield from self._encode([trace])
            return segments
        prefixes, salt = self._runner.prefixes, traces[0].cache_salt
        first, head = traces[0].token_ids, min(trace.head for trace in traces)
        moment = prefixes.moment()
        alike = (
            len(first) - 1
            if len(traces) == 1
            else _common_length([trace.token_ids for trace in traces])
        )
        cache, known = prefixes.fork(first[: alike + 1], salt=salt)
        found = known
        if len(traces) == 1 or alike - known >= _WORTH_A_PASS:
            while known < alike:
                part = self._scheduler.part()
                if len(traces) == 1 and known + part > alike and not self._scheduler.answering:
                    break  # nobody waits: the last part is read with the last token, below
                until = min(alike, known + part)
                yield Unread(first[known:until], cache)
                known = until
        segments = encode_rows(
            self._runner.model,
            self._runner.positions,
            [(trace.token_ids, trace.keep) for trace in traces],
            cache,
            fingerprint=self._runner.fingerprint,
            infos=[trace.info for trace in traces],
            backgrounds=[trace.background for trace in traces],
        )
        # Traces of one agent begin alike; more of them is not kept, since nothing would
        # remove it when they are deleted.
        if found < head <= cache.get_seq_length():
            shared = beginning(cache, head)
            prefixes.insert(first[:head], shared, salt=salt, since=moment)
        return segments

    def check(self, segment: Segment, trace: Encodable) -> None:
        """Refuse a stored segment that this model would not make of a trace.

        Raises:
            SegmentCorruptedError: It is another model's or another trace's.
        """
        token_ids = [trace.token_ids[index] for index in trace.keep]
        check_segment(segment, self._runner.positions, token_ids, trace.background)

    def stage(self, segment: Segment) -> Segment:
        """Return a stored segment in the memory from which the model reads it fastest."""
        if self._runner.model.device.type != "cuda":
            return segment
        try:
            return segment.pinned()
        except RuntimeError as error:
            logger.debug("A segment is not pinned (%s).", error)
            return segment


def _common_length(rows: Sequence[Sequence[int]]) -> int:
    """Return the length of the common prefix, leaving at least one token of each row."""
    most = min(map(len, rows)) - 1
    return next((place for place in range(most) if len({row[place] for row in rows}) > 1), most)
