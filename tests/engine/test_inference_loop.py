"""One loop answers all: together, each as it would be alone, and none at another's cost."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lag_integrations import Engine
from lag_integrations.engine.inference_loop import InferenceLoop
from lag_integrations.engine.runner import ModelRunner
from lag_integrations.errors import LAGError, PromptError
from lag_integrations.kv.cache import JointCache
from lag_integrations.traces.message import Message
from tests.conftest import qa
from tests.helpers import loop_threads, wait_until
from tests.store.model import tiny_engine
from tests.store.processes import start


def ask(engine, question, segments=(), **settings):
    settings = {"max_new_tokens": 16, "do_sample": False, **settings}
    return engine.request([Message(role="user", content=question)], segments, **settings)


def long(engine):
    """Much that no log says."""
    least = {"max_new_tokens": 1500, "min_new_tokens": 1500}
    return ask(engine, "Hi", do_sample=True, temperature=9.0, **least)


def questions(engine):
    """Each with other segments, other lengths, another end."""
    vault = engine.encode(qa("What is the code of the vault in Lima?", "The code is 7741."))
    pet = engine.encode(qa("What is the name of Ada's cat?", "Ada's cat is named Tolmin."))
    return [
        lambda: ask(engine, "Which code opens the vault in Lima?", [vault]),
        lambda: ask(engine, "How is Ada's cat named?", [vault, pet], max_new_tokens=9),
        lambda: ask(engine, "Say hello.", stop=["!"]),
        lambda: ask(engine, "Tell a story.", do_sample=True, temperature=1.5, seed=5),
    ]


@pytest.fixture
def sizes(monkeypatch):
    """How many sequences share each pass."""
    found = []
    read = ModelRunner.read
    monkeypatch.setattr(
        ModelRunner, "read", lambda self, rows: found.append(len(rows)) or read(self, rows)
    )
    return found


def test_different_segments_a_row(engine, sizes):
    asked = questions(engine)
    alone = [engine.generate_batch([request()])[0] for request in asked]
    assert set(sizes) == {1}
    together = engine.generate_batch([request() for request in asked])
    assert engine.can_batch
    assert max(sizes) == 4
    for one, other in zip(together, alone, strict=True):
        assert one.token_ids == other.token_ids
        assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
        assert one.injected_tokens == other.injected_tokens
        assert one.prompt_tokens == other.prompt_tokens
    assert "7741" in together[0].text
    assert "Tolmin" in together[1].text


def test_threads_and_event_loops_share_passes(small, sizes):
    asked = questions(small)
    alone = [small.generate_batch([request()])[0].text for request in asked]

    async def read(request):
        return "".join([piece async for piece in small.start(request)])

    async def at_once():
        return await asyncio.gather(*(read(request()) for request in asked))

    with ThreadPoolExecutor(8) as pool:
        elsewhere = pool.submit(lambda: asyncio.run(at_once()))
        here = list(pool.map(lambda request: "".join(small.start(request())), asked))
    assert here == alone
    assert elsewhere.result() == alone
    assert max(sizes) > 4


def test_models_whose_sequences_cannot_share_a_pass_take_turns(monkeypatch, caplog):
    engine = tiny_engine()
    forward = type(engine.model).forward

    def looks_at_keys(self, *args, **kwargs):  # as Falcon's attention does
        if isinstance(kwargs["past_key_values"], JointCache):
            raise AttributeError("'SharedPass' object has no attribute 'shape'")
        return forward(self, *args, **kwargs)

    asked = [ask(engine, "Hi"), ask(engine, "Something that is quite a bit longer")]
    expected = [engine.generate_batch([request])[0].token_ids for request in asked]
    monkeypatch.setattr(type(engine.model), "forward", looks_at_keys)
    assert not engine.can_batch
    streams = [engine.start(request) for request in asked]
    pieces = [next(stream) for stream in streams]
    texts = [piece + "".join(stream) for piece, stream in zip(pieces, streams, strict=True)]
    assert all(texts)
    assert [stream.generation.token_ids for stream in streams] == expected
    assert "they take turns" in caplog.text


def test_what_goes_wrong_with_one_is_its_own(small, monkeypatch):
    asked = questions(small)
    expected = small.generate_batch([asked[0](), asked[2]()])
    broken = ask(small, "This one breaks.", max_new_tokens=20)
    late = ask(small, "This one is late.", timeout=0.0)
    left = small.start(ask(small, "This one is left.", max_new_tokens=200))
    object.__setattr__(broken, "prompt_ids", [10**9])  # beyond the vocabulary
    streams = [small.start(request) for request in (asked[0](), broken, late, asked[2]())]
    next(left)
    left.close()
    texts = ["".join(streams[0]), "".join(streams[3])]
    assert texts == [generation.text for generation in expected]
    with pytest.raises(IndexError):
        list(streams[1])
    assert list(streams[1]) == []
    with pytest.raises(TimeoutError, match="timeout="):
        list(streams[2])
    assert left.generation.finish_reason == "cancelled"


def test_any_mix_of_requests_gives_each_its_own(small):
    vault = small.encode(qa("What is the code of the vault in Lima?", "The code is 7741."))
    pet = small.encode(qa("What is the name of Ada's cat?", "Ada's cat is named Tolmin."))
    kinds = [
        ("Which code opens the vault in Lima?", [vault], {}),
        ("How is Ada's cat named?", [vault, pet], {}),
        ("Say hello.", [], {"stop": ["!"]}),
        ("Tell a story.", [], {"do_sample": True, "temperature": 1.5, "seed": 5}),
        ("Name a fruit as JSON.", [], {"grammar": 'start: "{\\"fruit\\": \\"" /[a-z]+/ "\\"}"'}),
    ]
    expected = [
        small.generate_batch([ask(small, question, logs, **settings)])[0].text
        for question, logs, settings in kinds
    ]
    chance = random.Random(3)

    def one(number: int) -> tuple[int, str | None]:
        its = random.Random(number)
        time.sleep(0.2 * its.random())
        kind = its.randrange(len(kinds))
        question, logs, settings = kinds[kind]
        stream = small.start(ask(small, question, logs, cache_salt=str(kind), **settings))
        if its.random() < 0.3:
            next(stream, None)
            stream.close()
            return kind, None
        if its.random() < 0.2:
            broken = ask(small, question)
            object.__setattr__(broken, "prompt_ids", [10**9])
            with pytest.raises(IndexError):
                list(small.start(broken))
        return kind, "".join(stream)

    with ThreadPoolExecutor(12) as pool:
        for kind, text in pool.map(one, chance.sample(range(1000), 60)):
            assert text in (None, expected[kind])


def test_a_long_prompt_and_encoding_come_between_tokens(monkeypatch):
    engine = tiny_engine()
    passes = []
    read = ModelRunner.read

    def noted(self, rows):
        passes.append([len(row.token_ids) for row in rows])
        return read(self, rows)

    monkeypatch.setattr(ModelRunner, "read", noted)
    stream = engine.start(long(engine))
    for _ in range(20):
        next(stream)
    passes.clear()
    other = engine.start(ask(engine, "word " * 400, max_new_tokens=1))
    reader = threading.Thread(target=lambda: list(other))
    reader.start()
    while reader.is_alive():
        next(stream)
    mixed = [tokens for tokens in passes if len(tokens) == 2]
    assert len(mixed) > 1, "the prompt is read in parts, with the next token in each"
    segment = threading.Thread(target=lambda: engine.encode(qa("word " * 400, "Done.")))
    segment.start()
    before = len(passes)
    while segment.is_alive():
        next(stream)
    assert len(passes) > before + 1
    stream.close()


def test_the_thread_ends_with_the_work(small):
    stream = small.start(ask(small, "Tell a long tale.", max_new_tokens=200))
    next(stream)
    assert loop_threads()
    stream.close()
    wait_until(lambda: not loop_threads())
    assert small.generate_batch([ask(small, "Hi")])[0].text


def test_a_stream_that_is_dropped_stops(small):
    stream = small.start(ask(small, "Tell a long tale.", max_new_tokens=400))
    generation = stream.generation
    next(stream)
    del stream
    gc.collect()
    wait_until(lambda: not loop_threads())
    assert len(generation.token_ids) < 40


def test_an_answer_is_a_little_ahead_of_its_reader_and_goes_on_with_it(small):
    whole = small.generate_batch([ask(small, "Count to 40.", max_new_tokens=80)])[0]
    assert len(whole.token_ids) > 40
    stream = small.start(ask(small, "Count to 40.", max_new_tokens=80))
    first = next(stream)
    wait_until(lambda: not loop_threads())
    assert len(stream.generation.token_ids) < 40
    assert first + "".join(stream) == whole.text


def test_ctrl_c_stops_an_answer_and_harms_no_other(small, request):
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, handler))
    stream = small.start(long(small))
    next(stream)
    press = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    press.start()
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    press.join()
    wait_until(lambda: not loop_threads())
    assert len(stream.generation.token_ids) < 1500
    assert stream.generation.finish_reason == "cancelled"
    (alone,) = small.generate_batch([ask(small, "Hi")])
    assert len(alone.token_ids) == 16


def test_a_closed_engine_ends_its_answers():
    engine = tiny_engine()
    stream = engine.start(long(engine))
    next(stream)
    engine.close()
    with pytest.raises(LAGError, match="closed"):
        list(stream)
    with pytest.raises(LAGError, match="closed"):
        ask(engine, "Hi")


def test_an_event_loop_that_ends_leaves_nothing_behind(small):
    async def leave():
        stream = small.start(ask(small, "Tell a long tale.", max_new_tokens=400))
        await anext(stream)
        return stream

    stream = asyncio.run(leave())
    wait_until(lambda: not loop_threads())
    assert len(stream.generation.token_ids) < 400


def test_the_garbage_collector_closes_streams_wherever_it_runs(small):
    stream = small.start(ask(small, "Tell a long tale.", max_new_tokens=400))
    next(stream)

    def collect() -> None:
        with small._loop._lock:  # it may run while a thread is being started
            stream.close()

    other = threading.Thread(target=collect, daemon=True)
    other.start()
    other.join(20)
    assert not other.is_alive()
    wait_until(lambda: not loop_threads())


def test_a_prefix_that_cannot_be_kept_costs_no_answer(small, monkeypatch):
    expected = small.generate_batch([ask(small, "Hi")])[0].token_ids

    def full(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(ModelRunner, "keep_prefix", full)
    found = small.generate_batch([ask(small, "Hi"), ask(small, "Hello")])
    assert found[0].token_ids == expected


def test_streams_that_nobody_reads_hold_up_no_other(monkeypatch):
    monkeypatch.setattr("lag_integrations.engine.scheduler._MOST_ANSWERS", 2)
    engine = tiny_engine()
    left = [engine.start(long(engine)) for _ in range(3)]
    assert engine.generate_batch([ask(engine, "Hi")])[0].token_ids
    for stream in left:
        next(stream)
        stream.close()


def test_a_deadline_holds_while_nothing_is_computed(small):
    stream = small.start(ask(small, "Tell a long tale.", max_new_tokens=400, timeout=1.5))
    next(stream)
    wait_until(lambda: not loop_threads())
    time.sleep(1.5)
    with pytest.raises(TimeoutError):
        list(stream)


def test_an_answer_that_is_over_holds_no_cache(small):
    stream = small.start(ask(small, "Hi", max_new_tokens=3))
    list(stream)
    assert stream._answer.reading is None


def forks() -> None:
    """Fork amid an answer; end with 0 where parent and child go on as they should."""
    engine = tiny_engine()
    expected = engine.generate_batch([ask(engine, "Hi")])[0].token_ids
    going = engine.start(long(engine))
    next(going)
    child = os.fork()
    if child == 0:
        with pytest.raises(LAGError, match="forked"):
            list(going)
        found = engine.generate_batch([ask(engine, "Hi")])[0].token_ids
        os._exit(0 if found == expected else 4)
    _, status = os.waitpid(child, 0)
    assert engine.generate_batch([ask(engine, "Hi")])[0].token_ids == expected
    going.close()
    sys.exit(os.waitstatus_to_exitcode(status))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_has_a_loop_of_its_own():
    process = start(forks)
    process.join(120)
    assert process.exitcode == 0


def tensors():
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_many_requests_leave_nothing_behind(small):
    def one(number: int) -> int:
        return len(small.generate_batch([ask(small, f"{number}?", max_new_tokens=2)])[0].token_ids)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(60)))
    live = tensors()
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(60)))
    assert tensors() < live + 50


def test_many_who_encode_at_once_do_not_stop_the_loop():
    """Work was chosen while other threads added to it, which ended the thread for all of them."""
    loop = InferenceLoop(lambda extra: (False, None), lambda: None)

    def work():
        yield from ()
        return 1

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda _: loop.in_parts(work()), range(3_000), timeout=60))
    finally:
        sys.setswitchinterval(before)
    assert found == [1] * 3_000


def test_a_loop_that_breaks_lets_nobody_wait():
    def step(extra):
        raise MemoryError("none left")

    def work():
        yield None

    loop = InferenceLoop(step, lambda: None)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(loop.in_parts, work()) for _ in range(2)]
        for future in waiting:
            with pytest.raises(MemoryError):
                future.result(timeout=30)
    assert loop.call(lambda: 2) == 2


def test_requests_that_say_too_little_or_end_with_logs():
    engine = tiny_engine()
    plain = Engine(
        engine.model,
        engine.tokenizer,
        chat_template="{% for m in messages %}{{ m.content }}{% endfor %}",
    )
    with pytest.raises(PromptError, match="renders nothing"):
        plain.request([Message(role="user", content="")])
    segment = plain.encode(qa("Code?", "It is 7741."))
    request = plain.request([Message(role="system", content="Be short.")], [segment])
    assert request.split < len(request.prompt_ids)
    assert plain.request([Message(role="user", content="Hi")], stop="END").stop == ("END",)
