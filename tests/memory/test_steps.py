"""Single steps of runs: found by what an agent is about to do, and given alone."""

from __future__ import annotations

import pytest
import torch
from llama_index.core.llms import ChatMessage

from lag_integrations import KVLogMemory, Trace, WholeTrace
from lag_integrations.engine.token_selection import LastTurn
from lag_integrations.errors import LogNotFoundError
from lag_integrations.langchain import LAGChatModel
from lag_integrations.llama_index import LAGLLM, LAGMemory
from lag_integrations.store.statistics import statistics_of
from lag_integrations.traces.message import Message, ToolCall

TASK = "Ship the cello to Oslo."
STEPS = [
    ("I ask for the tariff of Norway.", "tariff", "The tariff is 40 per kilo."),
    ("Now I weigh the cello.", "scales", "It weighs nine kilos."),
]
PRICE = "Shipping the cello costs 360."


def run(padding: int = 0) -> Trace:
    messages = [{"role": "user", "content": TASK}]
    for text, name, result in STEPS:
        call = {"id": name, "name": name, "args": {}}
        messages += [
            {"role": "assistant", "content": text, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": name, "content": result + " and so on" * padding},
        ]
    return Trace.from_messages([*messages, {"role": "assistant", "content": PRICE}])


def stored(memory: KVLogMemory) -> int:
    return sum(
        kind.stored for kind in statistics_of(memory.store.database, memory.namespace).segments
    )


@pytest.fixture(scope="module")
def whole(small):
    return small.encode(run(), WholeTrace())


def test_the_step_that_fits_is_found_and_its_kv_is_a_part_of_the_runs(memory, small, whole):
    memory.attach(small)
    log_id = memory.add(run())
    memory.flush()
    for query, step in ((TASK, 0), (STEPS[1][0], 1), (f"{TASK} {PRICE}", 2)):
        (found,) = memory.recall(query, steps=True, min_score=0.3)
        assert (found.id, found.step, found.reference) == (log_id, step, f"{log_id}#{step}")
        (again,) = memory.get([found.reference])
        assert (again.id, again.step) == (log_id, step)
        (segment,) = memory.segments([again])
        text = small.tokenizer.decode(segment.token_ids)
        said = [part for text_, _, result in STEPS for part in (text_, result)] + [PRICE]
        assert [part in text for part in said] == [place // 2 == step for place in range(5)]
        start = next(
            start
            for start in range(len(whole))
            if whole.token_ids[start : start + len(segment)].equal(segment.token_ids)
        )
        for (keys, values), (all_keys, all_values) in zip(segment.slots, whole.slots, strict=True):
            of_step = slice(start, start + len(segment))
            torch.testing.assert_close(keys, all_keys[:, :, of_step], atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(values, all_values[:, :, of_step], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("settings", [{"selection": LastTurn()}, {}])
def test_a_step_that_the_selection_does_not_keep_is_taken_of_the_whole_trace(
    tmp_path, embedder, small, settings, caplog
):
    """Of a run of more than 512 tokens the first step is not kept, nor are others by `LastTurn`."""
    trace = run(padding=300)
    with KVLogMemory(tmp_path / "m", embedder=embedder, **settings) as memory:
        memory.attach(small)
        log_id = memory.add(trace)
        memory.flush()
        before = stored(memory)
        (first,) = memory.segments(memory.get([f"{log_id}#0"]))
        assert STEPS[0][0] in small.tokenizer.decode(first.token_ids)
        assert stored(memory) == before + 1
        (loaded,) = memory.load(memory.get([f"{log_id}#0"]))
        assert (loaded.encoded, len(loaded.segment)) == (False, len(first))
        assert memory.load(memory.get([f"{log_id}#0"]), budget=len(first) - 1) == []
        memory.delete(log_id, wait=True)
        assert stored(memory) == 0


def test_what_is_not_there_is_left_out(memory, small):
    memory.attach(small)
    log_id = memory.add(run())
    asked = [f"{log_id}#3", f"{log_id}#", f"{log_id}#x", "none#0", f"{log_id}#2"]
    (last,) = memory.get(asked)
    assert last.text == PRICE
    memory.delete(log_id)
    with pytest.raises(LogNotFoundError):
        memory.segments([last])


@pytest.mark.parametrize("as_text", [False, True])
def test_a_model_is_given_steps_and_says_so(memory, small, as_text):
    log_id = memory.add(run())
    model = LAGChatModel(small, memory=memory, max_tokens=2)
    ids = [f"{log_id}#1", log_id]
    answer = model.invoke("And to Bergen?", kv_log_ids=ids, logs_as_text=as_text)
    lag = answer.response_metadata["lag"]
    assert lag["log_ids"] == [log_id, log_id]
    assert lag["steps"] == [1, None]


def test_llama_index_is_given_steps(memory, small):
    log_id = memory.add(run())
    memory.flush()
    llm = LAGLLM(small, max_tokens=2)
    lengths = {}
    for recall in ("run", "step"):
        messages = LAGMemory(memory, recall=recall, capture=False).get(TASK)
        lag = llm.chat([*messages, ChatMessage(TASK)]).raw["lag"]
        assert lag["log_ids"] == [log_id]
        lengths[recall] = lag["injected_tokens"]
    assert lengths["step"] < lengths["run"] / 2
    with pytest.raises(ValueError, match="recall"):
        LAGMemory(memory, recall="steps")


@pytest.mark.parametrize("as_text", [False, True])
def test_of_another_case_a_model_is_given_what_led_to_the_answer(memory, small, as_text):
    """With other numbers, the old answer would be wrong, and small models repeat it."""
    messages = [
        {"role": "user", "content": "What is the quick ratio of 40 and 20?"},
        {"role": "assistant", "content": "I look up the formula."},
        {"role": "user", "content": "It is assets by debts."},
        {"role": "assistant", "content": "40 / 20 = 2.00"},
    ]
    log_id = memory.add(Trace.from_messages(messages))
    memory.flush()
    model = LAGChatModel(small, memory=memory, max_tokens=2)
    tokens = {}
    for task, others in (
        ("The quick ratio of 40 and 20, please?", []),
        ("The quick ratio of 90 and 30, please?", [log_id]),
        ("What is the quick ratio?", []),
    ):
        for settings in ({"kv_log_ids": [log_id]}, {"min_score": -1}):
            lag = model.invoke(task, logs_as_text=as_text, **settings).response_metadata["lag"]
            assert (lag["log_ids"], lag["without_answer"]) == ([log_id], others)
            tokens[task] = lag["injected_tokens"]
    (found,) = memory.get(log_id)
    assert found.for_task("Of 90 and 30?").text == "I look up the formula.\nIt is assets by debts."
    assert found.for_task("Of 90 and 40?").text == "I look up the formula.\nIt is assets by debts."
    assert found.for_task("Of 40 and 20?").text == "40 / 20 = 2.00"
    if not as_text:
        whole, led, again = tokens.values()
        answer = small.encode(found.trace, LastTurn())
        assert (again, whole - led) == (whole, len(answer))
    plain = memory.add(
        Trace.from_messages(
            [
                {"role": "user", "content": "What is 40 plus 20?"},
                {"role": "assistant", "content": "It is 60."},
            ]
        )
    )
    lag = model.invoke("What is 50 plus 10?", kv_log_ids=[plain]).response_metadata["lag"]
    assert lag["without_answer"] == []  # nothing else would be left of it


RATIO = Trace.from_messages(
    [
        {"role": "user", "content": "What is the quick ratio of 40 and 20?"},
        {"role": "assistant", "content": "I look up the formula."},
        {"role": "user", "content": "It is assets by debts."},
        {"role": "assistant", "content": "40 / 20 = 2.00"},
    ]
)


@pytest.mark.parametrize(
    ("prompt", "question", "other"),
    [
        ("In 2019, revenue was 12.\nWhat is the quick ratio?", "What is the quick ratio?", False),
        ("Known: 40, 20, 90.\nThe ratio of 90 and 30?", "The ratio of 90 and 30?", True),
    ],
)
def test_documents_of_a_turn_are_no_part_of_its_case(memory, small, prompt, question, other):
    log_id = memory.add(RATIO)
    model = LAGChatModel(small, memory=memory, max_tokens=2)
    answer = model.invoke(prompt, question=question, kv_log_ids=[log_id])
    assert answer.response_metadata["lag"]["without_answer"] == [log_id] * other


def test_a_segment_that_is_the_answer_alone_is_given_and_said_so(tmp_path, embedder, small):
    with KVLogMemory(tmp_path / "m", embedder=embedder, selection=LastTurn()) as memory:
        log_id = memory.add(RATIO)
        model = LAGChatModel(small, memory=memory, max_tokens=2)
        lag = model.invoke("Of 90 and 30?", kv_log_ids=[log_id]).response_metadata["lag"]
        assert (lag["form"], lag["without_answer"]) == ("kv", [])
        lag = model.invoke("Of 90 and 30?", kv_log_ids=[log_id], logs_as_text=True)
        assert lag.response_metadata["lag"]["without_answer"] == [log_id]


def test_a_call_after_the_answer_is_no_part_of_what_led_to_it(memory, small):
    call = {"id": "1", "name": "save", "args": {"ratio": "2.00"}}
    messages = [
        *RATIO.messages,
        Message(role="assistant", tool_calls=(ToolCall(**call),)),
        Message(role="tool", tool_call_id="1", content="saved"),
    ]
    trace = RATIO.model_copy(update={"messages": tuple(messages)})
    (log,) = memory.get(memory.add(trace))
    given = log.for_task("Of 90 and 30?")
    assert given.text == "I look up the formula.\nIt is assets by debts."
    (loaded,) = memory.load([given], small)
    assert "2.00" not in small.tokenizer.decode(loaded.segment.token_ids)


def test_a_step_beyond_the_selection_is_encoded_when_it_was_read_as_text(tmp_path, embedder, small):
    trace = run(padding=300)
    with KVLogMemory(tmp_path / "m", embedder=embedder) as memory:
        memory.attach(small)
        log_id = memory.add(trace)
        memory.flush()
        step = memory.get([f"{log_id}#0"])
        (loaded,) = memory.load(step, missing="text")
        assert loaded.segment is None
        memory.flush()
        (loaded,) = memory.load(step, missing="text")
        assert loaded.segment is not None
        assert STEPS[0][0] in small.tokenizer.decode(loaded.segment.token_ids)
