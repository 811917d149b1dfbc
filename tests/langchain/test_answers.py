"""What an answer of LAGChatModel may be: batches, calls, objects, thoughts, and their limits."""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from typing import ClassVar, Literal

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField
from langchain_core.tools import tool
from pydantic import BaseModel, ValidationError

from lag_integrations import Engine, KVLogMemory, packaged
from lag_integrations.chat.current import use_memory
from lag_integrations.engine import encoder
from lag_integrations.engine.runner import ModelRunner
from lag_integrations.errors import ConstraintError, PromptError, ToolChoiceError
from lag_integrations.langchain import LAGChatModel
from lag_integrations.memory import segment_indexer
from tests.conftest import qa
from tests.helpers import loop_threads, wait_until

QUESTIONS = [
    "Which code opens the vault in Lima?",
    "Say hello.",
    "How is Ada's cat named?",
    "Name a fruit.",
    "Count from one to five.",
    "What is the capital of France?",
    "Write a line about bees.",
    "Is snow cold?",
]


def with_logs(engine, memory):
    memory.attach(engine)
    memory.add(qa("What is the code of the vault in Lima?", "The code of the vault is 7741."))
    memory.add(qa("What is the name of Ada's cat?", "Ada's cat is named Tolmin."))
    memory.flush()
    return LAGChatModel(engine, memory=memory, temperature=0, max_tokens=16)


@pytest.fixture
def model(engine, memory):
    return with_logs(engine, memory)


@pytest.fixture
def plain(engine):
    return LAGChatModel(engine, temperature=0, max_tokens=60)


@pytest.fixture
def wild(small):
    """Random weights, where it does not matter what is said in the form that was asked for."""
    return LAGChatModel(small, temperature=0, max_tokens=60)


@pytest.fixture
def wild_with_logs(small, memory):
    return with_logs(small, memory)


class Count(BaseCallbackHandler):
    def __init__(self) -> None:
        self.starts = 0

    def on_chat_model_start(self, *_, **__) -> None:
        self.starts += 1


def contents(answers):
    return [answer.content for answer in answers]


# Several at once


@pytest.fixture
def sizes(monkeypatch):
    """How many sequences share each forward pass."""
    found = []
    read = ModelRunner.read
    monkeypatch.setattr(
        ModelRunner, "read", lambda self, rows: found.append(len(rows)) or read(self, rows)
    )
    return found


def test_a_batch_is_one_forward_pass_a_token_and_gives_what_single_calls_give(
    wild_with_logs, sizes
):
    alone = [wild_with_logs.invoke(question) for question in QUESTIONS]
    assert set(sizes) == {1}
    handlers = [Count() for _ in QUESTIONS]
    batched = wild_with_logs.batch(QUESTIONS, [{"callbacks": [handler]} for handler in handlers])
    assert contents(batched) == contents(alone)
    assert [len(a.response_metadata["lag"]["log_ids"]) for a in batched] == [1, 0, 1, *[0] * 5]
    assert [handler.starts for handler in handlers] == [1] * 8
    assert max(sizes) == 8
    sizes.clear()
    assert contents(asyncio.run(wild_with_logs.abatch(QUESTIONS[:3]))) == contents(alone[:3])
    assert max(sizes) == 3
    assert contents(wild_with_logs.batch(QUESTIONS, {"max_concurrency": 3})) == contents(alone)
    assert max(sizes) == 3


def test_a_batch_through_a_chain_is_a_batch_too(model, sizes):
    chain = ChatPromptTemplate.from_template("{question}") | model
    answers = chain.batch([{"question": question} for question in QUESTIONS[:3]])
    assert max(sizes) == 3
    assert "7741" in answers[0].content


def test_one_bad_input_of_a_batch_costs_the_others_nothing(wild_with_logs):
    inputs = ["Say hello.", "word " * 9000, "Name a fruit."]
    answers = wild_with_logs.batch(inputs, return_exceptions=True)
    assert isinstance(answers[1], ValueError)
    assert contents([answers[0], answers[2]]) == contents(
        [wild_with_logs.invoke(inputs[0]), wild_with_logs.invoke(inputs[2])]
    )
    with pytest.raises(ValueError, match="window"):
        wild_with_logs.batch(inputs)


def test_concurrent_calls_share_passes_and_give_what_they_give_alone(wild_with_logs, sizes):
    async def at_once():
        return await asyncio.gather(*(wild_with_logs.ainvoke(question) for question in QUESTIONS))

    alone = [wild_with_logs.invoke(question) for question in QUESTIONS]
    assert contents(asyncio.run(at_once())) == contents(alone)
    # Recall is on threads, of which there may be few: the first to begin may end before the last.
    assert max(sizes) > len(QUESTIONS) / 2


def test_the_event_loop_goes_on_while_the_model_works(wild_with_logs, monkeypatch):
    workers = set()

    def note_thread(owner, name):
        original = getattr(owner, name)

        def noting(*args, **kwargs):
            workers.add(threading.get_ident())
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, noting)

    note_thread(ModelRunner, "read")
    note_thread(KVLogMemory, "recall")

    async def ask():
        await wild_with_logs.ainvoke("Name a fruit.", max_tokens=5)
        await wild_with_logs.abatch(["Name a fruit.", "Name a tree."], max_tokens=5)
        async for _ in wild_with_logs.astream("Name a fruit.", max_tokens=5):
            pass
        return threading.get_ident()

    assert asyncio.run(ask()) not in workers
    assert workers


def test_a_cancelled_or_abandoned_stream_computes_nothing_more(wild, monkeypatch):
    steps = []
    read = ModelRunner.read
    monkeypatch.setattr(ModelRunner, "read", lambda *args: steps.append(1) or read(*args))

    async def cancel():
        reached = asyncio.Event()

        async def consume():
            async for _ in wild.astream("Tell a long story.", max_tokens=500):
                if len(steps) > 3:
                    reached.set()
                    await asyncio.Event().wait()

        task = asyncio.create_task(consume())
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert len(steps) < 60
    stream = wild.stream("Tell a long story.", max_tokens=500)
    steps.clear()
    for _ in range(3):
        next(stream)
    wait_until(lambda: not loop_threads())  # nothing is computed any more
    assert len(steps) < 40, "it is a few tokens ahead of who reads it"
    stream.close()
    assert wild.invoke("Hi").content


def test_an_answer_that_takes_too_long(engine):
    model = LAGChatModel(engine, timeout=0.2, max_tokens=2000)
    with pytest.raises(TimeoutError, match="timeout="):
        model.invoke("Tell a long story.")


def test_encoding_in_the_background_waits_for_an_answer(model, memory, monkeypatch):
    # On a busy machine the answer takes long.
    monkeypatch.setattr(segment_indexer, "_PATIENCE", 120.0)
    done = []  # in the order of the inference thread: who reads a stream may be behind it
    encode = encoder.encode_rows
    monkeypatch.setattr(
        encoder,
        "encode_rows",
        lambda *args, **kwargs: done.append("encoding") or encode(*args, **kwargs),
    )
    with model.engine.model.lm_head.register_forward_hook(lambda *_: done.append("token")):
        stream = model.stream("Tell a story about bees.", max_tokens=20)
        answer = next(stream)
        memory.add(qa("What is the code of the vault in Rome?", "The code of the vault is 1234."))
        for chunk in stream:
            answer += chunk
        memory.flush()
    assert done.index("encoding") >= answer.usage_metadata["output_tokens"] == 20


# Tools


@tool
def get_weather(city: str, unit: Literal["celsius", "fahrenheit"] = "celsius") -> str:
    """Get the weather of a city."""
    return f"Rain in {city}"


@tool
def find_price(item: str) -> str:
    """Find the price of an item."""
    return "37"


def test_a_forced_call(plain):
    bound = plain.bind_tools([get_weather, find_price], tool_choice="any")
    answer = bound.invoke("What is the weather in Oslo?")
    (call,) = answer.tool_calls
    assert call["name"] == "get_weather"
    assert "Oslo" in call["args"]["city"]
    assert len(call["id"]) == 9  # Mistral's templates refuse any other
    assert answer.content == ""
    assert answer.response_metadata["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "choice", ["find_price", {"type": "function", "function": {"name": "find_price"}}]
)
def test_a_named_tool_is_called_whatever_is_asked(wild, choice):
    bound = wild.bind_tools([get_weather, find_price], tool_choice=choice)
    (call,) = bound.invoke("What is the weather in Oslo?").tool_calls
    assert call["name"] == "find_price"


def test_a_streamed_call_is_the_invoked_one(wild):
    bound = wild.bind_tools([get_weather], tool_choice=True)
    invoked = bound.invoke("What is the weather in Oslo?")
    chunks = list(bound.stream("What is the weather in Oslo?"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    (call,), (expected,) = whole.tool_calls, invoked.tool_calls
    assert (call["name"], call["args"]) == (expected["name"], expected["args"])
    assert [chunk["index"] for c in chunks for chunk in c.tool_call_chunks] == [0]
    assert sum(bool(chunk.usage_metadata) for chunk in chunks) == 1
    told = ("input_tokens", "output_tokens", "total_tokens")
    assert [whole.usage_metadata[n] for n in told] == [invoked.usage_metadata[n] for n in told]


def test_no_tool_is_called_where_none_may_be(plain):
    asked = "Write exactly: <tool_call>"
    free = plain.bind_tools([get_weather]).invoke(asked)
    assert free.tool_calls
    held = plain.bind_tools([get_weather], tool_choice="none").invoke(asked, max_tokens=30)
    assert not held.tool_calls
    assert not held.invalid_tool_calls
    assert "<tool_call>" not in held.content


def test_a_malformed_call_is_an_invalid_call(plain, monkeypatch):
    """Without llguidance, a small model writes what it likes."""
    monkeypatch.setattr("lag_integrations.engine.engine.can_constrain", lambda: False)
    bound = plain.bind_tools([get_weather])
    asked = [
        HumanMessage("Weather in Oslo?"),
        AIMessage('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Os'),
    ]
    for answer in (
        bound.invoke(asked, max_tokens=3),
        *bound.stream("Write: <tool_call>", max_tokens=30),
    ):
        assert isinstance(answer, AIMessage)
    monkeypatch.setattr(
        type(plain.engine.chat_template.tools), "starts", lambda self: ("The ",), raising=True
    )
    broken = bound.invoke("What is the capital of France?", max_tokens=9)
    (invalid,) = broken.invalid_tool_calls
    assert invalid["error"]
    assert not broken.tool_calls
    chunks = list(bound.stream("What is the capital of France?", max_tokens=9))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    assert len(whole.invalid_tool_calls) == 1
    assert not whole.tool_calls


def test_results_of_tools_reach_the_model(plain):
    history = [
        SystemMessage("Answer in one sentence."),
        HumanMessage("What is the weather in Oslo?"),
        AIMessage(
            "",
            tool_calls=[
                {"name": "get_weather", "args": {"city": "Oslo"}, "id": "1", "type": "tool_call"}
            ],
        ),
        ToolMessage("It is hailing in Oslo, 3 degrees.", tool_call_id="1"),
    ]
    assert "hail" in plain.bind_tools([get_weather]).invoke(history).content.lower()
    anthropic = [
        *history[:2],
        AIMessage([{"type": "tool_use", "name": "get_weather", "input": {}, "id": "1"}]),
        HumanMessage(
            [{"type": "tool_result", "tool_use_id": "1", "content": "It is hailing in Oslo."}]
        ),
    ]
    assert "hail" in plain.invoke(anthropic).content.lower()


def test_tools_are_counted_and_shown(wild):
    messages = [HumanMessage("Hi")]
    bare = wild.get_num_tokens_from_messages(messages)
    counted = wild.get_num_tokens_from_messages(messages, tools=[get_weather])
    assert counted > bare + 30
    answer = wild.bind_tools([get_weather]).invoke(messages, max_tokens=1)
    assert answer.usage_metadata["input_tokens"] == counted


def test_a_choice_of_no_known_tool(plain):
    with pytest.raises(ToolChoiceError, match="get_weather"):
        plain.bind_tools([get_weather], tool_choice="look")


# Objects


class City(BaseModel):
    """A city."""

    name: str
    country: Literal["France", "Norway", "日本"]
    rivers: list[str]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_objects(plain, wild, method):
    structured = plain.with_structured_output(City, method=method)
    found = structured.invoke("Paris is the capital of France, on the river Seine.")
    assert isinstance(found, City)
    assert found.country == "France"
    raw = wild.with_structured_output(City.model_json_schema(), method=method, include_raw=True)
    result = raw.invoke("Paris is the capital of France, on the river Seine.")
    assert City.model_validate(result["parsed"])
    assert isinstance(result["raw"], AIMessage)


def test_json_mode(wild):
    found = wild.with_structured_output(method="json_mode").invoke("Paris, as JSON.")
    assert isinstance(found, dict)


def test_objects_however_few_the_tokens(wild):
    structured = wild.with_structured_output(City)
    for most in (22, 25, 30):
        found = structured.invoke("Name a city with all its rivers.", max_tokens=most)
        assert isinstance(found, City)
    with pytest.raises(ConstraintError, match="max_tokens"):
        structured.invoke("Name a city.", max_tokens=3)


def test_wrong_ways_to_ask_for_objects(plain):
    with pytest.raises(ValueError, match="json_mode"):
        plain.with_structured_output(City, method="telepathy")
    with pytest.raises(ValueError, match="schema"):
        plain.with_structured_output()
    with pytest.raises(PromptError, match="json_schema"):
        plain.invoke("Hi", response_format={"type": "json_schema"})


def test_an_agent_with_a_response_format(wild):
    """The profile says that it is honoured, so the agent asks for it rather than for a tool."""
    assert wild.profile["structured_output"]
    agent = create_agent(wild, [], response_format=City)
    state = agent.invoke({"messages": "Paris, France, on the Seine."})
    assert isinstance(state["structured_response"], City)


def test_a_loaded_module_and_its_tokenizer(small):
    """The module stays out of the settings, which agents copy and tracers write down."""
    model = LAGChatModel(small.model, tokenizer=small.tokenizer, temperature=0, max_tokens=40)
    agent = create_agent(model, [], response_format=City)
    state = agent.invoke({"messages": "Paris, France, on the Seine."})
    assert isinstance(state["structured_response"], City)
    assert isinstance(model.model, str)
    assert "fingerprint" in model._identifying_params
    json.dumps(model._identifying_params)


def test_nobody_is_shown_a_token():
    model = LAGChatModel("x", model_kwargs={"token": "hf_secret", "revision": "b"})
    assert model._identifying_params["model_kwargs"] == {"revision": "b"}  # for caches
    assert model.loading["token"] == "hf_secret"
    assert "hf_secret" not in repr(model) + str(model._identifying_params) + str(model.model_dump())
    assert model.with_config(tags=["a"]).bound.loading["token"] == "hf_secret"


def test_copies_keep_the_loaded_model(wild):
    field = ConfigurableField(id="t")
    configurable = wild.configurable_fields(temperature=field)
    hot = configurable.with_config(configurable={"t": 0.5})
    assert hot.invoke("Hi", max_tokens=2).content
    assert copy.deepcopy(wild).engine is wild.engine
    named = LAGChatModel(packaged.chat_model(), max_tokens=2)
    again = type(named)(**{**named.__dict__, "temperature": 0.5})
    assert again.engine is named.engine
    other = type(named)(**{**named.__dict__, "dtype": "bfloat16"})
    assert other.shared is not named.shared
    named.close()


def test_a_callback_of_a_batch_may_call_another_model(wild, small):
    other = LAGChatModel(small, temperature=0, max_tokens=3)
    inner = []

    class Asks(BaseCallbackHandler):
        def on_chat_model_start(self, *_, **__) -> None:
            inner.append(other.invoke("Name a colour.", {"callbacks": []}).content)

    asked = ["Say hello.", "Name a fruit."]
    alone = [wild.invoke(question, max_tokens=6) for question in asked]
    batched = wild.batch(asked, [{"callbacks": [Asks()]}, {}], max_tokens=6)
    assert contents(batched) == contents(alone)
    assert inner == [other.invoke("Name a colour.").content]


def test_new_tokens_are_told_once(wild):
    """LangChain tells callbacks of each chunk; a model that does so, too, would tell it twice."""

    class Tokens(BaseCallbackHandler):
        told: ClassVar[list[str]] = []

        def on_llm_new_token(self, token: str, **_: object) -> None:
            self.told.append(token)

    chunks = list(wild.stream("Name a fruit.", {"callbacks": [Tokens()]}, max_tokens=8))
    assert "".join(Tokens.told) == "".join(chunk.text for chunk in chunks)


def test_an_object_or_a_call(wild):
    """With tools and a response format, the model has the choice, but no other."""
    form = {"type": "json_schema", "json_schema": {"schema": City.model_json_schema()}}
    bound = wild.bind_tools([get_weather], response_format=form)
    kinds = set()
    for asked in ("What is the weather in Oslo?", "Paris, France, on the Seine.", "{"):
        answer = bound.invoke(asked)
        assert not answer.invalid_tool_calls
        for call in answer.tool_calls:
            assert get_weather.invoke(call["args"])
        if not answer.tool_calls:
            assert City.model_validate_json(answer.content)
        kinds.add(bool(answer.tool_calls))
    assert kinds


# Thoughts, figures, settings


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def test_thoughts_are_kept_apart(small):
    thinking = Engine(small.model, small.tokenizer, chat_template=THINKING)
    model = LAGChatModel(thinking, temperature=0, max_tokens=24)
    answer = model.invoke("What is 1 + 1?")  # this model never ends a thought
    assert answer.content == ""
    assert answer.additional_kwargs["reasoning_content"]
    chunks = list(model.stream("What is 1 + 1?"))
    thoughts = "".join(c.additional_kwargs.get("reasoning_content", "") for c in chunks)
    assert thoughts == answer.additional_kwargs["reasoning_content"]
    assert isinstance(model.with_structured_output(City).invoke("Paris", max_tokens=60), City)
    assert model.bind_tools([get_weather], tool_choice="any").invoke("Oslo?").tool_calls


def test_logprobs(wild):
    answer = wild.invoke("Hi", logprobs=True, top_logprobs=2, max_tokens=3)
    entries = answer.response_metadata["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries).startswith(answer.content)
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)
    assert entries[0]["logprob"] == entries[0]["top_logprobs"][0]["logprob"]  # greedy
    assert "logprobs" not in wild.invoke("Hi", max_tokens=1).response_metadata


def test_which_logs_a_call_uses(model, memory, embedder, tmp_path):
    both = [log.id for log in memory.recall("a vault, a cat", k=2, min_score=-1)]

    def used(**settings):
        return model.invoke("Say hello.", max_tokens=1, **settings).response_metadata["lag"][
            "log_ids"
        ]

    assert used() == []
    assert used(kv_log_ids=both) == both
    assert used(kv_log_ids=both[1:]) == both[1:]
    assert used(kv_log_ids=["no such log"]) == []
    without = model.invoke(QUESTIONS[0], kv_log_ids=[], max_tokens=1)
    assert without.response_metadata["lag"]["log_ids"] == []
    bare = LAGChatModel(model.engine, temperature=0, max_tokens=16)
    with use_memory(memory):
        helped = bare.invoke(QUESTIONS[0], kv_log_ids=both)
    assert "7741" in helped.content


def test_what_a_text_model_cannot_read_is_refused(plain):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    with pytest.raises(PromptError, match="image_url"):
        plain.invoke([HumanMessage([{"type": "text", "text": "What is this?"}, image])])


def test_wrong_settings_are_refused(engine, memory):
    with pytest.raises(ValidationError, match="temprature"):
        LAGChatModel(engine, temprature=1)
    with pytest.raises(ValueError, match="cache"):
        LAGChatModel(engine, memory=memory, cache=True)
    with pytest.raises(ValidationError, match="top_p"):
        LAGChatModel(engine, top_p=7)


def test_a_wrong_name_shows_at_once_if_asked(tmp_path):
    LAGChatModel(str(tmp_path))  # lazily: nothing is looked at
    with pytest.raises(Exception, match="cannot be loaded"):
        LAGChatModel(str(tmp_path), validate_model_on_init=True)
