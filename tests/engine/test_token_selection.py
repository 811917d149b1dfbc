"""What the default selection keeps of a trace."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from lag_integrations import Trace, packaged
from lag_integrations.engine.chat_template import ChatTemplate
from lag_integrations.engine.encodable import Encodable
from lag_integrations.engine.token_selection import (
    LastAction,
    LastResponse,
    LastResponses,
    LastTurn,
    TaskAndLastTurns,
    WholeTrace,
    WithoutContext,
)
from lag_integrations.errors import TraceError


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate(AutoTokenizer.from_pretrained(packaged.chat_model()))


def trace(*turns: str, system: str = "You are terse.") -> Trace:
    roles = ["system", *["user", "assistant"] * len(turns)]
    messages = zip(roles, (system, *turns), strict=False)
    return Trace.from_messages([{"role": role, "content": text} for role, text in messages])


def kept(template: ChatTemplate, run: Trace, most: int) -> str:
    rendered = template.render(run.messages, generate=False)
    indices = TaskAndLastTurns(most).keep(rendered)
    assert indices == sorted(set(indices))
    return template.tokenizer.decode([rendered.token_ids[index] for index in indices])


def answer(template: ChatTemplate, run: Trace, most: int, window: int = 4096) -> str:
    ready = Encodable.of(run, TaskAndLastTurns(most), template, window)
    tokens = [ready.token_ids[index] for index in ready.keep[ready.background :]]
    return template.tokenizer.decode(tokens)


RUN = trace("Which code?", "I look it up.", "The code is 7741.", "It is 7741.")
WORDS = " ".join(["word"] * 80)


def test_a_short_trace_is_kept_whole_but_for_the_system_message(template):
    text = kept(template, RUN, 512)
    assert text.startswith("<|im_start|>user\nWhich code?<|im_end|>")
    assert text.endswith("<|im_start|>assistant\nIt is 7741.<|im_end|>\n")
    assert "I look it up." in text
    assert "terse" not in text


def test_of_a_long_trace_the_middle_goes(template):
    run = trace("Which code?", WORDS, WORDS, "I read it.", "Good. Say it.", "It is 7741.")
    text = kept(template, run, 100)
    assert text.count("<|im_start|>") == 4
    assert "word" not in text
    assert text.startswith("<|im_start|>user\nWhich code?<|im_end|>\n<|im_start|>assistant\nI read")
    assert "Say it." in text
    assert text.endswith("It is 7741.<|im_end|>\n")


@pytest.mark.parametrize("window", [4096, 60])
@pytest.mark.parametrize("most", [30, 100, 512])
def test_it_says_where_the_answer_begins(template, most, window):
    run = trace("Which code?", WORDS, WORDS, "I read it.", "Good. Say it.", "It is 7741.")
    said = "<|im_start|>assistant\nIt is 7741.<|im_end|>\n"
    assert answer(template, run, most, window) == said
    assert answer(template, run, 8, window) == said


def test_a_window_that_only_a_part_of_the_answer_fits(template):
    run = trace("Which code?", WORDS)
    text = answer(template, run, 512, window=60)
    assert text.startswith(" word")
    assert text.endswith("word<|im_end|>\n")
    ready = Encodable.of(run, TaskAndLastTurns(512), template, 60)
    assert (ready.background, len(ready.token_ids)) == (0, 60)


@pytest.mark.parametrize("rule", [WholeTrace(), LastResponses(2), WithoutContext(WholeTrace())])
@pytest.mark.parametrize("window", [4096, 60])
def test_whatever_is_kept_the_last_response_begins_behind_its_background(template, rule, window):
    run = trace("Which code?", WORDS, WORDS, "I read it.", "Good. Say it.", "It is 7741.")
    ready = Encodable.of(run, rule, template, window)
    assert 0 < ready.background < len(ready.keep)
    tokens = [ready.token_ids[index] for index in ready.keep[ready.background :]]
    header = "" if rule == LastResponses(2) else "<|im_start|>assistant\n"
    assert template.tokenizer.decode(tokens).startswith(header + "It is 7741.")


@pytest.mark.parametrize("rule", [LastTurn(), LastResponse(), LastAction()])
def test_the_last_response_alone_has_no_background(template, rule):
    assert Encodable.of(RUN, rule, template, 4096).background == 0


def test_a_long_task_gives_way_to_the_last_turns(template):
    text = kept(template, trace(WORDS, "I read it.", "Say it.", "It is 7741."), 60)
    assert text.startswith("<|im_start|>assistant\nI read it.")


def test_the_last_turn_is_kept_however_long_it_is(template):
    text = kept(template, trace("Which code?", "Wait.", "Well?", WORDS), 30)
    assert text.count("word") == 80
    assert "Wait" not in text


def test_what_follows_the_last_response_is_not_kept(template):
    text = kept(template, trace("Which code?", "It is 7741.", "Thanks, that is all."), 512)
    assert "Thanks" not in text


def test_a_trace_without_a_response_is_refused(template):
    with pytest.raises(TraceError, match="no assistant response"):
        kept(template, trace("Which code?"), 512)


def test_the_name_says_how_much_is_kept():
    assert TaskAndLastTurns(64).name == "task_and_last_turns_64"
    with pytest.raises(ValueError, match="at least one token"):
        TaskAndLastTurns(0)


@pytest.mark.parametrize("selection", [TaskAndLastTurns(512), WholeTrace(), LastResponses(9)])
@pytest.mark.parametrize("system", ["You are terse.", None])
def test_earlier_turns_are_read_but_not_kept(template, selection, system):
    earlier = trace("Tell me of the Team plan.", "It has chats and maps.").messages[1:]
    run = trace("And how much does it cost?", "18 euros a seat.", system=system or "")
    messages = run.messages if system else run.messages[1:]
    run = run.model_copy(update={"messages": messages, "earlier": earlier})
    ready = Encodable.of(run, selection, template, 4096)
    text = template.tokenizer.decode(ready.token_ids)
    chat = [*messages[: bool(system)], *earlier, *messages[bool(system) :]]
    assert ready.token_ids == template.render(chat, generate=False).token_ids
    kept = template.tokenizer.decode([ready.token_ids[index] for index in ready.keep])
    assert "18 euros a seat." in kept
    assert "maps" not in kept
    assert "Team plan" in text
    assert "Team plan" not in template.tokenizer.decode(ready.token_ids[: ready.head])


def test_of_what_is_too_long_earlier_turns_go_first(template):
    earlier = trace(WORDS, WORDS).messages[1:]
    run = trace("And how much?", "18 euros a seat.").model_copy(update={"earlier": earlier})
    ready = Encodable.of(run, WholeTrace(), template, 60)
    assert len(ready) == 60
    text = template.tokenizer.decode(ready.token_ids)
    assert "terse" in text
    kept = template.tokenizer.decode([ready.token_ids[index] for index in ready.keep])
    assert kept.startswith("<|im_start|>user\nAnd how much?<|im_end|>\n<|im_start|>assistant\n18")
