"""What core asserts of its dispatcher, while our handlers stand at its root and capture: tests of
llama-index-instrumentation (test_dispatcher, test_propagation, test_shutdown, test_manager)."""

from __future__ import annotations

import asyncio
import inspect
import threading
from asyncio import CancelledError
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from llama_index.core.instrumentation import get_dispatcher, root_manager
from llama_index.core.types import Thread
from llama_index_instrumentation import DispatcherSpanMixin
from llama_index_instrumentation.base import BaseEvent
from llama_index_instrumentation.dispatcher import active_instrument_tags, instrument_tags
from llama_index_instrumentation.event_handlers import BaseEventHandler
from llama_index_instrumentation.span import active_span_id
from llama_index_instrumentation.span_handlers import BaseSpanHandler
from pydantic import PrivateAttr

from lag_integrations.llama_index.capture import instrument as capture
from tests.llama_index.recorder import user
from tests.llama_index.scripted import Scripted, captured, said

dispatcher = get_dispatcher("tests.of_ours")


class Started(BaseEvent):
    number: int = 0


class Ended(BaseEvent):
    number: int = 0


class Spans(BaseSpanHandler):
    """What another handler at the root is told, in order."""

    _told: list = PrivateAttr(default_factory=list)

    def span_enter(self, id_, bound_args, instance=None, parent_id=None, tags=None, **kwargs):
        self._told.append(("enter", id_, bound_args, instance, parent_id, tags))

    def span_exit(self, id_, bound_args, instance=None, result=None, **kwargs):
        self._told.append(("exit", id_, bound_args, instance, result))

    def span_drop(self, id_, bound_args, instance=None, err=None, **kwargs):
        self._told.append(("drop", id_, bound_args, instance, err))

    def new_span(self, *args, **kwargs):
        pass

    def prepare_to_exit_span(self, *args, **kwargs):
        pass

    def prepare_to_drop_span(self, *args, **kwargs):
        pass


class Events(BaseEventHandler):
    """Events of these tests."""

    _told: list = PrivateAttr(default_factory=list)

    def handle(self, event, **kwargs):
        if isinstance(event, Started | Ended):
            self._told.append(event)


@pytest.fixture(autouse=True)
def captures(memory, no_worker):
    """All of it goes on while everything is captured; nothing of it may be left."""
    before = len(capture._watch._spans)
    capturing = memory.instrument()
    yield capturing
    capturing.stop()
    assert len(capture._watch._spans) == before
    assert not capture._watch._runs
    assert captured(memory) == [] or captured(memory)[0].task == "Hi?"


@pytest.fixture
def spans():
    root, handler = get_dispatcher(), Spans()
    root.add_span_handler(handler)
    yield handler._told
    root.span_handlers.remove(handler)


@pytest.fixture
def events():
    root, handler = get_dispatcher(), Events()
    root.add_event_handler(handler)
    yield handler._told
    root.event_handlers.remove(handler)


ERROR, CANCELLED = ValueError("an error"), CancelledError("cancelled")


@dispatcher.span
def add(a, b=3, **kwargs):
    return a + b


@dispatcher.span
async def aadd(a, b=3, **kwargs):
    return a + b


@dispatcher.span
def fail(a, b=3, **kwargs):
    raise ERROR


@dispatcher.span
async def afail(a, b=3, **kwargs):
    raise CANCELLED


@dispatcher.span
def tell(number=0):
    dispatcher.event(Started(number=number))
    dispatcher.event(Ended(number=number))


@dispatcher.span
async def atell(number=0):
    dispatcher.event(Started(number=number))
    await asyncio.sleep(0.01)
    await aadd(1)
    dispatcher.event(Ended(number=number))


class Thing:
    @dispatcher.span
    def add(self, a, b=3, **kwargs):
        return a + b

    @dispatcher.span
    async def aadd(self, a, b=3, **kwargs):
        return a + b

    @dispatcher.span
    def fail(self, a, b=3, **kwargs):
        raise ERROR

    @dispatcher.span
    async def afail(self, a, b=3, **kwargs):
        raise CANCELLED


async def result_of(function, *args, **kwargs):
    result = function(*args, **kwargs)
    return await result if inspect.isawaitable(result) else result


THING = Thing()
OF_THING = pytest.mark.parametrize("instance", [None, THING])


def at(instance, name):
    return globals()[name] if instance is None else getattr(instance, name)


@OF_THING
@pytest.mark.parametrize("name", ["add", "aadd"])
async def test_others_are_told_of_calls_as_ever(spans, instance, name):
    function = at(instance, name)
    assert await result_of(function, 3, c=5) == 6
    enter, exit = spans
    bound = inspect.signature(function).bind(3, c=5)
    assert enter[0] == "enter"
    assert enter[1].startswith(f"Thing.{name}-" if instance else f"{name}-")
    assert enter[2:] == (bound, instance, None, {})
    assert exit == ("exit", enter[1], bound, instance, 6)


@OF_THING
@pytest.mark.parametrize(("name", "error"), [("fail", ERROR), ("afail", CANCELLED)])
async def test_others_and_callers_get_the_error_itself(spans, instance, name, error):
    function = at(instance, name)
    with pytest.raises(type(error)) as raised:
        await result_of(function, 3, b=5)
    assert raised.value is error
    enter, drop = spans
    bound = inspect.signature(function).bind(3, b=5)
    assert drop == ("drop", enter[1], bound, instance, error)


async def test_events_have_the_span_they_were_told_in(spans, events):
    tell(1)
    await asyncio.gather(*(atell(number) for number in (2, 3, 4)))
    assert set(Counter(event.span_id for event in events).values()) == {2}
    entered = {span[1]: span[2].args for span in spans if span[0] == "enter"}
    for event in events:
        assert entered[event.span_id] == (event.number,)


async def test_an_event_may_be_told_asynchronously(events):
    await dispatcher.aevent(Started(number=7))
    assert [event.number for event in events] == [7]


@pytest.mark.parametrize("function", [tell, atell])
async def test_tags_are_on_events_and_spans(spans, events, function):
    tags = {"a": "tag"}
    with instrument_tags(tags):
        await result_of(function)
    assert {str(span[5]) for span in spans if span[0] == "enter"} == {str(tags)}
    assert [event.tags for event in events] == [tags, tags]
    assert active_instrument_tags.get() == {}


def test_tags_of_threads_do_not_mix(spans, events):
    tags = [{"a": number} for number in range(5)]

    def work(tag):
        with instrument_tags(tag):
            tell()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, tags))
    assert len(spans) == 10
    assert sorted(span[5]["a"] for span in spans if span[0] == "enter") == list(range(5))
    assert sorted(event.tags["a"] for event in events) == sorted(list(range(5)) * 2)


def test_a_tree_of_tasks_and_threads(spans, events):
    """Node n of a tree calls 2n and 2n+1, by turns in tasks and in threads; two trees at once."""
    deepest = 2**4

    def children(n):
        return () if n >= deepest // 2 else (2 * n, 2 * n + 1)

    @dispatcher.span
    def thread_node(tree, n):
        dispatcher.event(Started(number=n, tags={"tree": tree}))
        if n % 2:
            asyncio.run(_tasks(tree, n))
            return
        threads = [Thread(target=thread_node, args=(tree, child)) for child in children(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    @dispatcher.span
    async def task_node(tree, n):
        dispatcher.event(Started(number=n, tags={"tree": tree}))
        if n % 2:
            await _tasks(tree, n)
        else:
            await asyncio.gather(
                *(asyncio.to_thread(thread_node, tree, child) for child in children(n))
            )

    async def _tasks(tree, n):
        await asyncio.gather(*(task_node(tree, child) for child in children(n)))

    roots = [
        threading.Thread(target=thread_node, args=("of threads", 1)),
        threading.Thread(target=asyncio.run, args=(task_node("of tasks", 1),)),
    ]
    for root in roots:
        root.start()
    for root in roots:
        root.join()
    entered = {span[1]: (span[2].args, span[4]) for span in spans if span[0] == "enter"}
    assert sorted(args[1] for args, _ in entered.values()) == sorted(list(range(1, deepest)) * 2)
    for (tree, n), parent in entered.values():
        if n == 1:
            assert parent is None
        else:
            assert entered[parent][0] == (tree, n // 2)
    for event in events:
        assert entered[event.span_id][0] == (event.tags["tree"], event.number)
    assert len(events) == len(entered) == len([span for span in spans if span[0] == "exit"])


def test_a_span_is_one_however_often_it_is_decorated(spans):
    value = object()
    decorate = dispatcher.span
    assert decorate(decorate(decorate(lambda: value)))() is value
    assert [span[0] for span in spans] == ["enter", "exit"]


def test_methods_are_named_by_the_class_of_their_instance(spans):
    class Child(Thing):
        pass

    class Other(DispatcherSpanMixin):
        @dispatcher.span
        def method(self):
            return 1

    class Overriding(Other):
        def method(self):
            return 2

    assert [Child().add(1), Other().method(), Overriding().method()] == [4, 1, 2]
    names = [span[1].rpartition("-")[0].split("-")[0] for span in spans if span[0] == "enter"]
    assert names == ["Child.add", "Other.method", "Overriding.method"]


async def test_futures_and_generators_come_through_as_they_are(spans):
    loop = asyncio.get_running_loop()
    future, stream = loop.create_future(), iter([1, 2])

    @dispatcher.span
    def later():
        return future

    @dispatcher.span
    def streamed():
        return stream

    waiting = later()
    future.set_result("done")
    assert await waiting == "done"
    assert streamed() is stream
    assert list(stream) == [1, 2]
    await asyncio.sleep(0)
    assert sorted(span[0] for span in spans) == ["enter", "enter", "exit", "exit"]
    results = [span[4] for span in spans if span[0] == "exit"]
    assert any(result is stream for result in results)
    assert "done" in results


def test_what_is_carried_to_other_processes_is_not_ours():
    with instrument_tags({"user": "u1"}):
        context = dispatcher.capture_propagation_context()
    assert context == {"instrument_tags": {"user": "u1"}}
    try:
        dispatcher.restore_propagation_context(context)
        assert active_instrument_tags.get() == {"user": "u1"}
    finally:
        active_instrument_tags.set({})
    assert dispatcher.capture_propagation_context() == {}


def test_a_shutdown_is_survived(memory, captures):
    """Some exporters shut the dispatcher down at the end of a request, and the process goes on."""

    @dispatcher.span
    def interrupted():
        dispatcher.shutdown()
        dispatcher.shutdown()
        return "fine"

    assert interrupted() == "fine"
    Scripted("Hello.").chat([user("Hi?")])
    captures.wait_for_judge()
    (log,) = captured(memory)
    assert said(log) == [("user", "Hi?"), ("assistant", "Hello.")]


def test_dispatchers_are_where_they_were():
    assert {"root", "tests.of_ours"} <= set(root_manager.dispatchers)
    names = [handler.class_name() for handler in dispatcher.root.span_handlers]
    assert names.count("LAGSpanHandler") == 1
    assert active_span_id.get() is None


class Broken:
    """A watch that raises what not even an application should."""

    def __getattr__(self, name):
        raise KeyboardInterrupt


@pytest.fixture
def broken():
    """Handlers of ours with a defect, beside those that work."""
    root = get_dispatcher()
    ours = capture._SpanHandler(), capture._EventHandler(Broken())
    ours[0]._watch = Broken()
    root.add_span_handler(ours[0])
    root.add_event_handler(ours[1])
    yield
    root.span_handlers = [each for each in root.span_handlers if each is not ours[0]]
    root.event_handlers = [each for each in root.event_handlers if each is not ours[1]]


async def test_a_defect_of_ours_is_nobodys(spans, events, broken):
    assert add(1) == 4
    assert await aadd(1) == 4
    tell()
    with pytest.raises(ValueError, match="an error"):
        fail(1)
    assert [span[0] for span in spans] == ["enter", "exit"] * 3 + ["enter", "drop"]
    assert len(events) == 2
