"""The spans that LlamaIndex reports, as a tree of what calls what."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import BoundArguments
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.base_selector import BaseSelector
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.indices.query.query_transform.base import BaseQueryTransform
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.question_gen.types import BaseQuestionGenerator
from llama_index.core.workflow import Workflow
from llama_index_instrumentation.dispatcher import active_instrument_tags

from lag_integrations.llama_index.capture.run import Call, Run
from lag_integrations.traces.sources import Source

_MAX_SPANS = 100_000
_UUID = 36
_CHOOSERS = (
    BaseSelector,
    BaseQuestionGenerator,
    BaseQueryTransform,
    BaseNodePostprocessor,
    BaseRetriever,
)


class Span:
    """A call that goes on, or one that ended and may still be the parent of one.

    Attributes:
        id: LlamaIndex's: the method and a UUID.
        parent: What called it.
        instance: Whose method it is, while it goes on.
        arguments: What it was called with, while it goes on.
        tags: LlamaIndex's ``instrument_tags`` when it began.
        run: The run that was opened here, if one was.
        muted: Whether nothing in it is captured.
        calls: The model calls that were begun here and go on, the last one last.
        chooses: Whether it selects, ranks, rewrites or retrieves, rather than answers.
        retrieved: What was retrieved in it, and in what it called.
    """

    __slots__ = (
        "arguments",
        "calls",
        "children",
        "chooses",
        "exited",
        "id",
        "instance",
        "muted",
        "parent",
        "released",
        "retrieved",
        "run",
        "tags",
    )

    def __init__(
        self, id: str, instance: Any, arguments: BoundArguments, parent: Span | None, muted: bool
    ) -> None:
        self.id = id
        self.parent = parent
        self.instance = instance
        self.arguments: BoundArguments | None = arguments
        self.tags = active_instrument_tags.get()
        self.run: Run | None = None
        self.muted = muted
        self.calls: list[Call] = []
        self.chooses = isinstance(instance, _CHOOSERS)
        self.retrieved: dict[Source, None] = {}
        self.children = 0
        self.exited = self.released = False

    @property
    def name(self) -> str:
        """Return the method, with its class."""
        return self.id[: -_UUID - 1]

    @property
    def run_id(self) -> str:
        """Return the id of a run that is opened here."""
        return self.id[-_UUID:].replace("-", "")

    @property
    def is_conversation(self) -> bool:
        """Return whether it is a run of a workflow or agent, or a chat engine's turn."""
        if isinstance(self.instance, Workflow):
            return self.name.endswith(".run")
        return isinstance(self.instance, BaseChatEngine)

    def upwards(self) -> Iterator[Span]:
        """Iterate over the span, what called it, and so on."""
        span: Span | None = self
        while span is not None:
            yield span
            span = span.parent

    def innermost_run(self) -> Run | None:
        """Return the run that it belongs to."""
        for span in self.upwards():
            if span.muted:
                return None
            if span.run is not None:
                return span.run
        return None

    def outermost_of(self, instance: object) -> Span:
        """Return the first of the calls that lead here without leaving an instance."""
        span = self
        while span.parent is not None and span.parent.instance is instance:
            span = span.parent
        return span


class Spans:
    """The spans that go on, their parents, and those of runs that are not over.

    Not thread safe.
    """

    def __init__(self) -> None:
        self._spans: dict[str, Span] = {}
        self._kept: dict[Run, list[Span]] = {}

    def __len__(self) -> int:
        return len(self._spans)

    def get(self, id: str | None) -> Span | None:
        """Return the span with an id."""
        return None if id is None else self._spans.get(id)

    def enter(
        self, id: str, instance: Any, arguments: BoundArguments, parent: str | None, muted: bool
    ) -> Span:
        """Add the span of a call that begins."""
        span = Span(id, instance, arguments, self.get(parent), muted)
        if span.parent is not None:
            span.parent.children += 1
        self._spans[id] = span
        if len(self._spans) > _MAX_SPANS:  # somebody's never end
            del self._spans[next(iter(self._spans))]
        return span

    def leave(self, span: Span) -> None:
        """Note that a call ended.

        In a run it is kept: a task or a stream may yet go on where it left off.
        """
        span.exited = True
        span.instance = span.arguments = None
        run = span.innermost_run()
        if run is None or run.over:
            self._release(span)
        else:
            self._kept.setdefault(run, []).append(span)

    def forget(self, run: Run) -> None:
        """Let go of the spans of a run that is over."""
        for span in self._kept.pop(run, ()):
            self._release(span)

    def _release(self, span: Span | None) -> None:
        while span is not None and span.exited and not span.children and not span.released:
            run = span.innermost_run()
            if run is not None and not run.over:
                return
            span.released = True
            self._spans.pop(span.id, None)
            span = span.parent
            if span is not None:
                span.children -= 1
