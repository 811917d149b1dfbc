"""The engine on the real packaged model."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from lag_integrations import Engine, Trace
from lag_integrations.engine.log_texts import around_logs
from lag_integrations.engine.token_selection import WholeTrace
from lag_integrations.errors import (
    ContextWindowError,
    FingerprintMismatchError,
    LAGError,
    PromptError,
    UnsupportedModelError,
)
from lag_integrations.kv.cache import new_cache
from lag_integrations.kv.encode import encode
from lag_integrations.kv.inject import inject
from lag_integrations.kv.segment import Segment
from lag_integrations.traces.message import Message
from tests.conftest import qa
from tests.kv.families import feed, full_logits, greedy

BRIEF = {"do_sample": False, "max_new_tokens": 6}
GREEDY = {"do_sample": False, "max_new_tokens": 16}
TRACE = qa("What is the code of the vault in Lima?", "The code of the vault in Lima is 7741.")


def user(text: str, *before: tuple[str, str]):
    turns = [*before, ("user", text)]
    return Trace.from_messages([{"role": r, "content": c} for r, c in turns]).messages


def as_messages(trace: Trace, text: str):
    return user(text, *((message.role, message.text) for message in trace.messages))


def answered(chat, text: str) -> Trace:
    return Trace.from_messages([*chat, Message(role="assistant", content=text)])


class Logits:
    """Records the last logits of every forward pass that computes any."""

    def __init__(self, engine: Engine) -> None:
        self.rows: list[torch.Tensor] = []
        self._hook = engine.model.lm_head.register_forward_hook(
            lambda _, __, out: self.rows.append(out[0, -1].float())
        )

    def __enter__(self) -> Logits:
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def test_injection_equals_reading_the_text(engine):
    """The whole trace as a segment, after the same system message, is what a prefill computes."""
    question = "Which code opens the vault in Lima?"
    segment = engine.encode(TRACE, WholeTrace())
    with Logits(engine) as injected:
        with_segment = engine.generate(
            user(question),
            [segment],
            placement="after_system",
            attention_temperature=1.0,
            log_lookup=False,  # a pass for each token, however long passes take
            **GREEDY,
        )
    with Logits(engine) as read:
        with_text = engine.generate(as_messages(TRACE, question), log_lookup=False, **GREEDY)
    assert with_segment.token_ids == with_text.token_ids
    assert with_segment.text == with_text.text
    # What stands before the segments has a forward pass of its own, unless it was read lately.
    assert 0 <= len(injected.rows) - len(read.rows) <= 1
    for mine, theirs in zip(injected.rows[-len(read.rows) :], read.rows, strict=True):
        assert (mine - theirs).abs().max() < 1e-3


def test_every_position_is_exact(engine):
    text = "The old harbour of Velmora has four piers, and its lighthouse was built in 1874 by Ada "
    ids = engine.tokenizer(text + "Krenn, who later moved to Tolmin and kept bees.")["input_ids"]
    identity = engine.fingerprint.id
    segment = encode(engine.model, engine.positions, ids[:20], range(20), fingerprint=identity)
    expected = full_logits(engine.model, ids)[20:]
    whole = greedy(engine.model, new_cache(), ids, 0)
    for where in (0, 997):
        cache = new_cache()
        inject(cache, engine.positions, [segment], start=where, fingerprint=identity)
        logits = feed(engine.model, cache, ids[20:], where + 20)
        assert (logits - expected).abs().max() < 1e-3
        cache = new_cache()
        inject(cache, engine.positions, [segment], start=where, fingerprint=identity)
        assert greedy(engine.model, cache, ids[20:], where + 20) == whole


class Passes:
    """Records how many tokens each forward pass reads."""

    def __init__(self, engine: Engine) -> None:
        self.tokens: list[int] = []
        self._hook = engine.model.register_forward_pre_hook(
            lambda _, __, kwargs: self.tokens.append(kwargs["input_ids"].shape[1]),
            with_kwargs=True,
        )

    def __enter__(self) -> Passes:
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


@pytest.mark.parametrize(
    "placement", ["before_turn", "before_question", "after_system", "before_prompt"]
)
def test_segments_stand_where_placement_says(small, placement):
    # A system message of its own: one that was read lately is not read again.
    before = [("system", f"You place segments {placement}."), ("user", "Hi"), ("assistant", "Hi.")]
    messages = user("Hello", *before)
    rendered = small.chat_template.render(messages)
    segment = small.encode(TRACE)
    with Passes(small) as passes:
        result = small.generate(messages, [segment], placement=placement, max_new_tokens=1)
    prompt, head, question = len(rendered.token_ids), rendered.head, rendered.question()
    turn = rendered.last_turn
    assert head < turn < question
    expected = {
        "before_turn": [turn, prompt - turn],
        "before_question": [question, prompt - question + 1],  # one for the line break
        "after_system": [head, prompt - head],
        "before_prompt": [prompt],
    }
    known = result.reused_tokens  # of the header, which others have read
    assert known <= 8
    expected[placement][0] -= known
    assert passes.tokens == expected[placement]
    assert result.prompt_tokens == sum(expected[placement]) + known
    assert result.injected_tokens == len(small.encode(TRACE))


def test_segments_stand_before_the_line_of_the_question(engine):
    segment = engine.encode(TRACE)
    prompt = "Documents:\nIs it late? Yes.\n\nQuestion: Is it late?\nAnswer:"
    begin, end = around_logs(text_before=True)
    for words, first, rest in (
        ("Is it late?", begin, f"{end}Question: Is it late?\nAnswer:"),
        ("Is it early?", "<|im_start|>user\n", f"\n{prompt}"),
        ("", "<|im_start|>user\n", f"\n{prompt}"),
    ):
        request = engine.request(
            user(prompt), [segment], question=words, placement="before_question"
        )
        assert engine.tokenizer.decode(request.prompt_ids[: request.split]).endswith(first)
        assert engine.tokenizer.decode(request.prompt_ids[request.split :]).startswith(rest)
        turn = engine.request(user(prompt), [segment], question=words, placement="before_turn")
        begins = rest if words == "Is it late?" else f"<|im_start|>user\n{prompt}"
        assert engine.tokenizer.decode(turn.prompt_ids[turn.split :]).startswith(begins)
    plain = engine.request(user(prompt), question="Is it late?")
    assert plain.prompt_ids == engine.request(user(prompt)).prompt_ids


def test_a_segment_is_never_changed_and_requests_share_nothing(small):
    segment = small.encode(TRACE)
    before = [slot.clone() for pair in segment.slots for slot in pair]
    first = small.generate(user("Which code?"), [segment], **GREEDY)
    small.generate(user("Something else entirely, please."), [segment, segment], **GREEDY)
    again = small.generate(user("Which code?"), [segment], **GREEDY)
    after = [slot for pair in segment.slots for slot in pair]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert first.token_ids == again.token_ids


def test_streaming_gives_the_same_text_in_pieces(engine):
    messages = user("Name three fruits, and write an emoji.")
    whole = engine.generate(messages, do_sample=False, max_new_tokens=18)
    stream = engine.stream(messages, do_sample=False, max_new_tokens=18)
    pieces = list(stream)
    assert len(pieces) > 5
    assert "".join(pieces) == whole.text == stream.generation.text
    assert "\ufffd" not in whole.text
    assert stream.generation.time_to_first_token > 0


def test_stop_sequences_of_several_tokens_are_never_shown(engine):
    messages = user("Count from one to ten in words, separated by commas.")
    free = engine.generate(messages, do_sample=False, max_new_tokens=12)
    stop = free.text[8:16]
    pieces = list(engine.stream(messages, do_sample=False, max_new_tokens=12, stop=[stop]))
    assert "".join(pieces) == free.text[: free.text.index(stop)]
    stopped = engine.generate(messages, do_sample=False, max_new_tokens=12, stop=[stop])
    assert stopped.finish_reason == "stop"
    cut = engine.generate(messages, do_sample=False, max_new_tokens=3)
    assert cut.finish_reason == "length"
    assert len(cut.token_ids) == 3


def wait_until_nothing_is_computed() -> None:
    end = time.monotonic() + 30
    while any(thread.name == "lag-inference" for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_abandoning_a_stream_stops_the_model(engine):
    stream = engine.stream(user("Tell a long story."), do_sample=False, max_new_tokens=2000)
    next(stream)
    stream.close()
    wait_until_nothing_is_computed()
    assert engine.generate(user("Hi"), max_new_tokens=2).text is not None


def test_dropping_a_stream_stops_the_model_too(engine):
    for _ in engine.stream(user("Tell a long story."), do_sample=False, max_new_tokens=2000):
        break
    wait_until_nothing_is_computed()


def test_a_stop_text_that_the_prompt_ends_with_does_not_end_the_answer(engine):
    settings = {"do_sample": False, "max_new_tokens": 8}
    free = engine.generate(user("Say hello."), **settings)
    assert engine.generate(user("Say hello."), stop=["\n\n"], **settings).text == free.text


@pytest.fixture(scope="module")
def small_forgetful(small):
    """The same model, which reads everything anew."""
    return Engine(small.model, small.tokenizer, prefix_cache_bytes=0)


@pytest.mark.parametrize("segments", [0, 2])
def test_a_conversation_that_goes_on_is_not_read_again(engine, segments):
    logs = [TRACE, qa("Who has the key of Lima?", "Paula has the key.")][:segments]
    recalled = [engine.encode(log) for log in logs]
    chat = user("Which code?", ("system", f"You guard {segments} vaults, and answer briefly."))
    first = engine.generate(chat, recalled, placement="after_system", **BRIEF)
    more = [
        *chat,
        Message(role="assistant", content=first.text),
        Message(role="user", content="Are you sure?"),
    ]
    with Passes(engine) as passes:
        second = engine.generate(more, recalled, placement="after_system", **BRIEF)
    known = engine.count_tokens(chat) + len(first.token_ids) - 1
    assert abs(passes.tokens[0] - (engine.count_tokens(more) - known)) <= 2
    assert abs(second.reused_tokens - known) <= 2
    assert second.injected_tokens == sum(map(len, recalled))
    assert second.injection_time == 0
    engine._runner.prefixes.clear()
    with Passes(engine) as all_passes:
        anew = engine.generate(more, recalled, placement="after_system", **BRIEF)
    assert second.token_ids == anew.token_ids
    assert anew.reused_tokens == 0
    assert sum(all_passes.tokens) > sum(passes.tokens) + known - 4


def test_a_long_prompt_behind_a_system_message_is_read_in_parts(
    small, small_forgetful, monkeypatch
):
    chat = user(" ".join(str(number) for number in range(40)), ("system", "You count boats."))
    small.generate(user("Ready?", ("system", "You count boats.")), **GREEDY)
    monkeypatch.setattr("lag_integrations.engine.scheduler._PART_CPU", 16)
    with Passes(small) as passes:
        answer = small.generate(chat, **GREEDY)
    assert answer.reused_tokens > 0
    unread = small.count_tokens(chat) - answer.reused_tokens
    assert unread > 64
    assert passes.tokens[: -(-unread // 16)] == [16] * (unread // 16) + [unread % 16] * (
        unread % 16 > 0
    )
    assert answer.token_ids == small_forgetful.generate(chat, **GREEDY).token_ids


def test_the_system_message_is_read_once_whatever_is_recalled(small):
    chat = user("What is the code?", ("system", "You guard a vault on an island in the west."))
    first: list[int] = []
    for code in (7741, 3309, 1205):
        segment = small.encode(qa("What is the code of the vault?", f"The code is {code}."))
        with Passes(small) as passes:
            small.generate(chat, [segment], **GREEDY)
        if first:
            assert passes.tokens[0] == first[1], "the question, behind the segment"
        first = first or passes.tokens
        del segment  # as if its log was deleted
        gc.collect()


def test_the_attention_temperature_is_one_default_for_any_number_of_logs(engine):
    segment = engine.encode(TRACE)
    for number in (1, 2, 3):
        request = engine.request(user("Which code?"), [segment] * number)
        assert request.attention_temperature == 0.9
    assert engine.request(user("Hi"), [segment], attention_temperature=1).attention_temperature == 1


def test_another_log_is_injected_after_the_same_beginning(engine):
    chat = user("What is the code?", ("system", "You guard one vault, far in the north."))
    codes = (7741, 3309)
    logs = [qa("What is the code of the vault?", f"The code is {code}.") for code in codes]
    for code, segment in zip(codes, [engine.encode(log) for log in logs], strict=True):
        mine = engine.generate(chat, [segment], **GREEDY)
        engine._runner.prefixes.clear()
        anew = engine.generate(chat, [segment], **GREEDY)
        assert anew.reused_tokens == 0
        assert mine.token_ids == anew.token_ids
        assert str(code) in mine.text
        assert mine.injection_time > 0
    assert mine.reused_tokens > 10


def test_a_run_is_encoded_from_what_was_read_and_generated(small, small_forgetful):
    chat = user("Name a colour of the sea.", ("system", "You are a painter by the sea."))
    answer = small.generate(chat, **BRIEF)
    trace = answered(chat, answer.text)
    with Passes(small) as passes:
        live = small.encode(trace)
    assert sum(passes.tokens) <= 3, "the end of the turn"
    anew = small_forgetful.encode(trace)
    assert torch.equal(live.token_ids, anew.token_ids)
    for mine, theirs in zip(live.slots, anew.slots, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert (one - other).abs().max() < 1e-3


def test_what_was_said_with_logs_in_mind_is_encoded_without_them(small, small_forgetful):
    chat = user("What is the code?", ("system", "You guard one vault, deep in the south."))
    answer = small.generate(chat, [small.encode(TRACE)], **BRIEF)
    trace = answered(chat, answer.text)
    live, anew = small.encode(trace), small_forgetful.encode(trace)
    for mine, theirs in zip(live.slots, anew.slots, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert (one - other).abs().max() < 1e-3


def test_traces_that_begin_alike_are_read_from_where_they_differ(small, small_forgetful):
    system = ("system", "You are a librarian in Porto, kind, and of few words. " * 3)
    traces = [
        answered(user(f"Where is shelf {number}?", system), "On the left.") for number in range(2)
    ]
    small.encode(traces[0])
    with Passes(small) as passes:
        second = small.encode(traces[1])
    assert passes.tokens[0] < 30 < small.count_tokens(traces[1].messages) - passes.tokens[0]
    for mine, theirs in zip(second.slots, small_forgetful.encode(traces[1]).slots, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert (one - other).abs().max() < 1e-3


def test_many_traces_are_encoded_together_as_alone(small, small_forgetful):
    system = ("system", "You sort letters in Bergen, and never lose one. " * 2)
    short = [answered(user(f"Letter {number}?", system), "Box " * number) for number in range(1, 6)]
    long = answered(user("All letters?", system), "They are all here. " * 80)
    traces = [long, *short, qa("And who are you?", "I sort letters.")]
    encodables = [small.encodable(trace) for trace in traces]
    with Passes(small) as passes:
        together = small.encode_all(encodables)
    backgrounds = [encodable.background for encodable in encodables]
    assert [segment.background for segment in together] == backgrounds
    assert len(set(backgrounds)) > 1
    assert len(passes.tokens) < len(traces)
    assert sum(passes.tokens) < sum(small.count_tokens(trace.messages) for trace in traces)
    for trace, segment in zip(traces, together, strict=True):
        alone = small_forgetful.encode(trace)
        assert torch.equal(segment.token_ids, alone.token_ids)
        assert segment.info == alone.info
        for mine, theirs in zip(segment.slots, alone.slots, strict=True):
            for one, other in zip(mine, theirs, strict=True):
                assert (one - other).abs().max() < 1e-3
    assert small.encode_all([]) == []


def test_runs_are_encoded_from_what_each_has_read_also_together(engine):
    runs = []
    for name in ("Ada", "Bob"):
        chat = user(f"{name} asks: how are you?", ("system", "You are brief, in the far west."))
        runs.append(answered(chat, engine.generate(chat, **BRIEF).text))
    with Passes(engine) as passes:
        engine.encode_all([engine.encodable(run) for run in runs])
    assert sum(passes.tokens) <= 6, "the ends of their turns"


def test_nothing_but_the_system_message_is_kept_of_traces(small):
    small._runner.prefixes.clear()
    system = ("system", "You read letters aloud in Turku. " * 4)
    traces = [
        answered(user("A long, long letter. " * 8 + f"{n}?", system), "It is.") for n in range(3)
    ]
    encodables = [small.encodable(trace) for trace in traces]
    small.encode_all(encodables)
    assert [small._runner.prefixes.match_length(one.token_ids)[0] for one in encodables] == [
        one.head for one in encodables
    ]


def test_an_error_within_a_forward_pass_leaves_nothing_half_read(small, small_forgetful):
    chat = user("Count to five.", ("system", "You count slowly, one by one."))
    calls = 0

    def fail(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("out of memory")

    with (
        small.model.model.layers[1].register_forward_pre_hook(fail),
        pytest.raises(RuntimeError, match="out of memory"),
    ):
        small.generate(chat, **BRIEF)
    expected = small_forgetful.generate(chat, **BRIEF).token_ids
    assert small.generate(chat, **BRIEF).token_ids == expected


def test_who_leaves_a_stream_does_not_wait_for_the_model(engine):
    stream = engine.stream(user("Tell a long tale."), do_sample=False, max_new_tokens=100)
    next(stream)
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        let_go.wait(20)

    other = threading.Thread(target=engine._loop.call, args=(hold,))
    other.start()
    assert held.wait(5)
    begun = time.monotonic()
    stream.close()
    waited = time.monotonic() - begun
    let_go.set()
    other.join()
    assert waited < 5


def test_what_was_read_lately_has_a_limit(small):
    for number in range(40):
        small.generate(user(f"{number}?", ("system", f"{number}!")), max_new_tokens=1)
    assert len(small._runner.prefixes) <= 32
    assert small._runner.prefixes.nbytes < 2**27


def test_an_error_while_generating_reaches_the_caller(engine):
    with pytest.raises(ValueError, match="unheard_of"):
        engine.generate(user("Hi"), unheard_of=1)


def test_a_seed_makes_sampling_repeatable_and_leaves_other_randomness_alone(small):
    settings = {"do_sample": True, "temperature": 1.5, "max_new_tokens": 12}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = small.generate(user("Write a word."), seed=7, **settings)
    assert torch.rand(1) == expected
    second = small.generate(user("Write a word."), seed=7, **settings)
    other = small.generate(user("Write a word."), seed=8, **settings)
    assert first.token_ids == second.token_ids != other.token_ids


def test_concurrent_calls_answer_as_one_after_another(small):
    segment = small.encode(TRACE)
    questions = [f"What is {n} plus {n}?" for n in range(6)]

    def ask(index: int) -> list[int]:
        segments = [segment] if index % 2 else []
        return small.generate(user(questions[index]), segments, **GREEDY).token_ids

    alone = [ask(index) for index in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(6))) == alone


def test_a_trace_longer_than_the_window_is_cut_by_rule_and_said_so(engine, caplog, monkeypatch):
    monkeypatch.setattr(engine.positions, "window", 300)
    filler = "The sea is wide. " * 100
    trace = Trace.from_messages(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": filler},
            {"role": "assistant", "content": "Noted: 7741."},
        ]
    )
    segment = engine.encode(trace)
    rendered = engine.chat_template.render(trace.messages, generate=False)
    assert int(segment.info["cut_tokens"]) == len(rendered.token_ids) - 300 > 0
    assert "cut" in caplog.text
    assert "sea" not in caplog.text
    kept = "<|im_start|>assistant\nNoted: 7741.<|im_end|>\n"
    assert engine.tokenizer.decode(segment.token_ids) == kept


def test_what_does_not_fit_the_window_is_refused(engine):
    with pytest.raises(ContextWindowError, match="8192"):
        engine.generate(user("word " * 9000))
    with pytest.raises(PromptError, match="after_system"):
        engine.generate(user("Hi"), placement="somewhere")


def test_a_segment_of_another_model_is_refused(small):
    segment = small.encode(TRACE)
    foreign = Segment(segment.token_ids, segment.slots, "0" * 64)
    with pytest.raises(FingerprintMismatchError, match="encode its trace again"):
        small.generate(user("Hi"), [foreign], max_new_tokens=1)


def test_fingerprint_sees_weights_template_and_dtype(small, tmp_path):
    small.model.save_pretrained(tmp_path)
    small.tokenizer.save_pretrained(tmp_path)
    same, half = Engine.load(tmp_path), Engine.load(tmp_path, dtype="bfloat16")
    assert same.fingerprint.id == small.fingerprint.id
    other_template = Engine(
        same.model,
        same.tokenizer,
        chat_template="{% for m in messages %}[{{ m.content }}]{% endfor %}",
    )
    assert other_template.fingerprint.differences(small.fingerprint.to_json()) == ["chat_template"]
    assert {"weights", "dtype"} <= set(half.fingerprint.differences(small.fingerprint.to_json()))
    with torch.no_grad():
        same.model.model.layers[2].mlp.up_proj.weight[3, 5] += 1e-3
    changed = Engine(same.model, same.tokenizer)
    assert changed.fingerprint.differences(small.fingerprint.to_json()) == ["weights"]


def test_unknown_and_unsupported_models_are_refused_by_name(engine, tmp_path):
    with pytest.raises(UnsupportedModelError, match="no-such-model"):
        Engine.load("no-such-model-anywhere")
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=99))
    for name in ("/no/such/model", "./no-such-model", "~/no-such.gguf"):
        with pytest.raises(UnsupportedModelError, match="There is no "):
            Engine.load(name)
    with pytest.raises(UnsupportedModelError, match=r"GPT2LMHeadModel.*absolute position"):
        Engine(gpt2, engine.tokenizer)


def test_a_closed_engine_says_so(small):
    closed = Engine(small.model, small.tokenizer)
    closed.close()
    closed.close()
    with pytest.raises(LAGError, match="closed"):
        closed.generate(user("Hi"))


def test_a_token_that_ends_answers_is_never_shown(engine, monkeypatch):
    """Some models end with a token that their tokenizer takes for text."""
    chat = user("Tell me of the sea.")
    told = engine.generate(chat, do_sample=False, max_new_tokens=8)
    last = next(token for token in told.token_ids[3:] if token not in told.token_ids[:3])
    config = engine.model.generation_config
    monkeypatch.setattr(config, "eos_token_id", [*engine.end_tokens, last])
    ended = engine.generate(chat, do_sample=False, max_new_tokens=8)
    place = told.token_ids.index(last)
    assert (ended.finish_reason, ended.token_ids) == ("stop", told.token_ids[: place + 1])
    assert ended.text == engine.tokenizer.decode(told.token_ids[:place])


@pytest.mark.skipif(torch.cuda.is_available(), reason="GPUs need the copies")
def test_keys_and_values_are_not_copied_for_each_head(engine, monkeypatch):
    def repeat(*_: object) -> None:
        raise AssertionError("keys and values were repeated")

    monkeypatch.setattr("transformers.integrations.sdpa_attention.repeat_kv", repeat)
    segment = engine.encode(qa("What is the code of the vault?", "It is 7741."))
    engine.generate([Message(role="user", content="Which code?")], [segment], max_new_tokens=3)
