"""What LlamaIndex expects of span handlers and event handlers at its root dispatcher."""

from __future__ import annotations

import pytest
from llama_index.core.instrumentation import get_dispatcher
from llama_index_instrumentation.dispatcher import instrument_tags
from llama_index_instrumentation.span_handlers import BaseSpanHandler
from pydantic import PrivateAttr

from lag_integrations.llama_index.capture.handlers import (
    _EventHandler,
    _SpanHandler,
    instrumentation,
)
from tests.helpers import captured
from tests.llama_index.fake_llm import FakeLLM, transcript, user

dispatcher = get_dispatcher("tests.of_ours")
ERROR = ValueError("an error")


class Spans(BaseSpanHandler):
    """What another handler at the root is told, in order."""

    _kinds: list = PrivateAttr(default_factory=list)

    def span_enter(self, *args, **kwargs):
        self._kinds.append("enter")

    def span_exit(self, *args, **kwargs):
        self._kinds.append("exit")

    def span_drop(self, *args, **kwargs):
        self._kinds.append("drop")

    def new_span(self, *args, **kwargs):
        pass

    def prepare_to_exit_span(self, *args, **kwargs):
        pass

    def prepare_to_drop_span(self, *args, **kwargs):
        pass


class Broken:
    """A tracker that raises what not even an application should."""

    def __getattr__(self, name):
        raise KeyboardInterrupt


@dispatcher.span
def add(a, b=3):
    return a + b


@dispatcher.span
def fail():
    raise ERROR


@pytest.fixture
def around_a_broken_one():
    """The kinds of spans that a handler is told of which stands after a broken one of ours."""
    root, spans = get_dispatcher(), Spans()
    broken = _SpanHandler(Broken(), instrumentation), _EventHandler(Broken())
    root.add_span_handler(broken[0])
    root.add_event_handler(broken[1])
    root.add_span_handler(spans)
    yield spans._kinds
    root.span_handlers = [h for h in root.span_handlers if h is not broken[0] and h is not spans]
    root.event_handlers = [h for h in root.event_handlers if h is not broken[1]]


def test_a_defect_of_ours_is_nobodys(memory, no_worker, around_a_broken_one):
    with memory.capture():
        assert add(1) == 4
        with pytest.raises(ValueError, match="an error") as raised:
            fail()
    assert raised.value is ERROR
    assert around_a_broken_one == ["enter", "exit", "enter", "drop"]


def test_what_is_carried_to_other_processes_is_not_ours(memory):
    with memory.capture(), instrument_tags({"user": "u1"}):
        assert dispatcher.capture_propagation_context() == {"instrument_tags": {"user": "u1"}}


def test_a_shutdown_is_survived(memory, no_worker):
    """Some exporters shut the dispatcher down at the end of a request, and the process goes on."""

    @dispatcher.span
    def interrupted():
        dispatcher.shutdown()
        dispatcher.shutdown()
        return "fine"

    with memory.capture():
        assert interrupted() == "fine"
        FakeLLM("Hello.").chat([user("Hi?")])
    (log,) = captured(memory)
    assert transcript(log) == [("user", "Hi?"), ("assistant", "Hello.")]
