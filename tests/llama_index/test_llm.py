"""LAGLLM: its words rarely matter, so most tests have the small engine."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import threading

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import (
    ChatMessage,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel, PrivateAttr

from lag_integrations import KVLogMemory
from lag_integrations.engine.runner import ModelRunner
from lag_integrations.errors import PromptError, SettingsError, ToolChoiceError
from lag_integrations.langchain import LAGChatModel
from lag_integrations.llama_index import LAGLLM
from lag_integrations.llama_index.messages import as_chat
from tests.conftest import qa
from tests.helpers import loop_threads, wait_until

TALE = [ChatMessage(role="user", content="Tell me of the sea.")]
VAULT = qa("What is the code of the vault in Lima?", "The code of the vault in Lima is 7741.")
QUESTION = "Which code does the vault in Lima have?"


class Seen(BaseEventHandler):
    """The names of the events, in order."""

    _names: list = PrivateAttr(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Seen"

    def handle(self, event, **kwargs) -> None:
        self._names.append(type(event).__name__)


@pytest.fixture
def llm(small):
    return LAGLLM(small, temperature=0, max_tokens=12)


@pytest.fixture
def events():
    root = get_dispatcher()
    handler = Seen()
    root.add_event_handler(handler)
    yield handler._names
    root.event_handlers.remove(handler)


def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"Rain in {city}."


def clock() -> str:
    """Tell the time."""
    return "Noon."


TOOLS = [FunctionTool.from_defaults(weather), FunctionTool.from_defaults(clock)]


def calls_of(response):
    return [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]


def test_it_is_a_base_llm():
    assert "BaseLLM" in [cls.__name__ for cls in LAGLLM.__mro__]
    assert issubclass(LAGLLM, BaseLLM)
    assert LAGLLM.class_name() == "LAGLLM"


def test_all_eight_ways_give_the_same(llm):
    said = llm.chat(TALE).message.content
    prompt = TALE[0].content

    async def rest():
        return [
            (await llm.achat(TALE)).message.content,
            (await llm.acomplete(prompt)).text,
            [part async for part in await llm.astream_chat(TALE)],
            [part async for part in await llm.astream_complete(prompt)],
        ]

    achat, acomplete, astream_chat, astream_complete = asyncio.run(rest())
    assert len(said.split()) > 3
    assert llm.complete(prompt).text == achat == acomplete == said
    for stream in (list(llm.stream_chat(TALE)), astream_chat):
        assert "".join(part.delta for part in stream) == stream[-1].message.content == said
        assert said.startswith(stream[0].message.content)
        assert len(stream) > 3
    for stream in (list(llm.stream_complete(prompt)), astream_complete):
        assert "".join(part.delta for part in stream) == stream[-1].text == said


def test_each_call_is_told_once(llm, events):
    llm.complete("Hi.")
    assert [name for name in events if name.startswith("LLM")] == [
        "LLMCompletionStartEvent",
        "LLMCompletionEndEvent",
    ]
    events.clear()
    list(llm.stream_chat(TALE))
    told = [name for name in events if name.startswith("LLM")]
    assert (told[0], told[-1]) == ("LLMChatStartEvent", "LLMChatEndEvent")
    assert set(told[1:-1]) == {"LLMChatInProgressEvent"}


def test_legacy_callbacks_and_token_counts(small):
    def count(text):
        return small.tokenizer(text)["input_ids"]

    counter = TokenCountingHandler(tokenizer=count)
    llm = LAGLLM(small, max_tokens=5, temperature=0, callback_manager=CallbackManager([counter]))
    response = llm.chat(TALE)
    usage = response.raw["usage"]
    assert counter.prompt_llm_token_count == usage["prompt_tokens"]
    assert counter.completion_llm_token_count == usage["completion_tokens"] == 5
    assert usage["prompt_tokens"] == small.count_tokens(as_chat(TALE))
    assert len(counter.llm_token_counts) == 1


def test_the_system_prompt_is_there_on_every_path(small, monkeypatch):
    llm = LAGLLM(small, temperature=0, max_tokens=1, system_prompt="Talk like a pirate.")
    prompts = []
    render = small.render
    monkeypatch.setattr(small, "render", lambda chat, *a: prompts.append(chat) or render(chat, *a))

    async def later():
        await llm.acomplete("Hi.")
        await llm.achat([ChatMessage(content="Hi.")])
        await llm.apredict(PromptTemplate("{x}"), x="Hi.")
        async for _ in await llm.astream_complete("Hi."):
            pass

    llm.complete("Hi.")
    llm.chat([ChatMessage(content="Hi.")])
    list(llm.stream_complete("Hi."))
    list(llm.stream_chat([ChatMessage(content="Hi.")]))
    llm.predict(PromptTemplate("{x}"), x="Hi.")
    list(llm.stream(PromptTemplate("{x}"), x="Hi."))
    asyncio.run(later())
    assert len(prompts) == 10
    for chat in prompts:
        assert [(m.role, m.text) for m in chat] == [
            ("system", "Talk like a pirate."),
            ("user", "Hi."),
        ]


def test_settings_of_a_call_are_honoured(llm):
    assert llm.chat(TALE, max_tokens=2).raw["usage"]["completion_tokens"] == 2
    assert llm.complete("Tell me of the sea.", max_tokens=2).raw["finish_reason"] == "length"
    told = llm.chat(TALE, max_tokens=40).message.content
    stop = told[8:16]
    assert llm.chat(TALE, stop=[stop]).message.content == told[: told.index(stop)]
    hot = {llm.chat(TALE, temperature=2.0, seed=seed).message.content for seed in (1, 2, 2)}
    assert len(hot) == 2
    with pytest.raises(SettingsError, match="misspelt"):
        llm.chat(TALE, misspelt=1)
    with pytest.raises(ValueError, match="temperature is -1"):
        LAGLLM(llm.engine, temperature=-1)
    with pytest.raises(PromptError, match="no message"):
        llm.chat([])
    logprobs = llm.chat(TALE, max_tokens=3, logprobs=True, top_logprobs=2).logprobs
    assert [len(entries) for entries in logprobs] == [2, 2, 2]
    assert all(entries[0].logprob >= entries[1].logprob for entries in logprobs)


def test_an_empty_answer_is_one_response(llm, small):
    first = small.tokenizer(llm.chat(TALE, max_tokens=1).message.content)["input_ids"][0]
    text = small.tokenizer.decode([first])
    parts = list(llm.stream_complete("Tell me of the sea.", stop=[text]))
    assert [part.text for part in parts] == [""]
    assert llm.complete("Tell me of the sea.", stop=[text]).text == ""


def test_the_event_loop_goes_on_and_answers_do_not_mix(llm, monkeypatch):
    questions = [f"Name {n} fruits." for n in range(2, 8)]
    alone = [llm.complete(question).text for question in questions]
    workers = set()
    working = ModelRunner.read
    monkeypatch.setattr(
        ModelRunner,
        "read",
        lambda self, rows: workers.add(threading.get_ident()) or working(self, rows),
    )

    async def together():
        answers = await asyncio.gather(*map(llm.acomplete, questions))
        return threading.get_ident(), [answer.text for answer in answers]

    loop, answers = asyncio.run(together())
    assert answers == alone
    assert loop not in workers


def test_who_stops_reading_stops_the_model(llm, monkeypatch):
    steps = []
    read = ModelRunner.read
    monkeypatch.setattr(ModelRunner, "read", lambda *args: steps.append(1) or read(*args))

    def stops() -> None:
        wait_until(lambda: not loop_threads())  # nothing is computed any more
        assert len(steps) < 40

    stream = llm.stream_chat(TALE, max_tokens=500)
    for _ in range(3):
        next(stream)
    stream.close()
    stops()
    steps.clear()

    async def cancelled():
        async def read():
            async for _ in await llm.astream_chat(TALE, max_tokens=500):
                begun.set()

        begun = asyncio.Event()
        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    stops()


def test_an_error_is_raised_not_hidden(llm):
    image = ChatMessage(role="user", blocks=[ImageBlock(image=b"0")])
    with pytest.raises(PromptError, match="image"):
        llm.chat([image])
    with pytest.raises(PromptError, match="image"):
        list(llm.stream_chat([image]))
    with pytest.raises(ValueError, match="window"):
        llm.complete("word " * 9000)


def test_tools_are_called_when_they_must_be(llm):
    response = llm.chat_with_tools(TOOLS, "How is it in Köln?", tool_required=True, max_tokens=60)
    (call,) = llm.get_tool_calls_from_response(response)
    assert call.tool_name in ("weather", "clock")
    assert call.tool_id
    response = llm.chat_with_tools(TOOLS, "Hi.", tool_choice="weather", max_tokens=60)
    (call,) = llm.get_tool_calls_from_response(response)
    assert set(call.tool_kwargs) == {"city"}
    streamed = list(llm.stream_chat_with_tools(TOOLS, "Hi.", tool_choice="weather", max_tokens=60))
    assert calls_of(streamed[-1])[0].tool_kwargs == call.tool_kwargs
    said = llm.predict_and_call(TOOLS, "How is it in Rome?", tool_required=True, max_tokens=60)
    assert said.sources
    with pytest.raises(ToolChoiceError, match="tool_required"):
        llm.get_tool_calls_from_response(llm.chat(TALE))
    assert llm.get_tool_calls_from_response(llm.chat(TALE), error_on_no_tool_call=False) == []


def test_histories_with_calls_and_results_reach_the_model():
    openai = {"id": "c2", "function": {"name": "clock", "arguments": "{}"}}
    chat = as_chat(
        [
            ChatMessage(role="developer", content="Be brief."),
            ChatMessage(
                role="assistant",
                blocks=[
                    ThinkingBlock(content="Hm."),
                    ToolCallBlock(
                        tool_name="weather", tool_kwargs={"city": "Köln"}, tool_call_id="c1"
                    ),
                ],
            ),
            ChatMessage(role="tool", content="Rain.", additional_kwargs={"tool_call_id": "c1"}),
            ChatMessage(role="assistant", content="", additional_kwargs={"tool_calls": [openai]}),
            ChatMessage(role="chatbot", blocks=[TextBlock(text="a"), TextBlock(text="b")]),
        ]
    )
    assert [message.role for message in chat] == [
        "system",
        "assistant",
        "tool",
        "assistant",
        "assistant",
    ]
    assert (chat[1].text, chat[1].tool_calls[0].args) == ("", {"city": "Köln"})
    assert (chat[2].tool_call_id, chat[2].text) == ("c1", "Rain.")
    assert (chat[3].tool_calls[0].name, chat[3].tool_calls[0].args) == ("clock", {})
    assert chat[4].text == "a\nb"


class City(BaseModel):
    """A city."""

    name: str
    people: int


def test_structured_prediction_is_always_valid(llm):
    prompt = PromptTemplate("Tell of {city}.")
    city = llm.structured_predict(City, prompt, {"max_tokens": 60}, city="Köln")
    assert isinstance(city, City)

    async def later():
        return await llm.astructured_predict(City, prompt, {"max_tokens": 60}, city="Köln")

    assert asyncio.run(later()) == city
    structured = LAGLLM(llm.engine, temperature=0, max_tokens=60).as_structured_llm(City)
    assert isinstance(structured.complete("Tell of Köln.").raw, City)


def test_an_agent_calls_tools_and_is_told_what_they_say(small):
    llm = LAGLLM(small, temperature=0, max_tokens=60)
    seen = []

    def look(city: str) -> str:
        """Tell the weather of a city."""
        seen.append(city)
        return "Rain."

    agent = FunctionAgent(
        llm=llm,
        tools=[look],
        system_prompt="You tell the weather.",
        initial_tool_choice="look",
    )

    async def run():
        return await agent.run(user_msg="How is the weather in Oslo?", max_iterations=4)

    response = asyncio.run(run())
    assert len(seen) == 1
    assert response.response.content


def test_metadata_and_payload(small):
    llm = LAGLLM(small, max_tokens=7, kv_reserve=100)
    metadata = llm.metadata
    assert metadata.context_window == small.window - 100
    assert LAGLLM(small, kv_reserve=10**6).metadata.context_window == small.window * 3 // 4
    assert (metadata.num_output, metadata.is_function_calling_model) == (7, True)
    assert metadata.is_chat_model
    payload = json.loads(json.dumps(LAGLLM(small, temperature=0.5).to_payload()))
    assert payload["class_name"] == "LAGLLM"
    assert payload["model"] == payload["model_name"] == llm.model
    assert payload["temperature"] == 0.5
    json.dumps(llm.to_dict())
    secret = LAGLLM("x", model_kwargs={"token": "hf_secret"})
    assert secret.loading["token"] == "hf_secret"
    assert "hf_secret" not in repr(secret) + str(secret.to_dict())


def test_copies_share_the_loaded_model(llm):
    for other in (copy.deepcopy(llm), copy.copy(llm), llm.model_copy()):
        assert other.engine is llm.engine
    assert LAGChatModel(llm.engine).engine is llm.engine


def test_it_loads_lazily(tmp_path):
    llm = LAGLLM(str(tmp_path / "nowhere"))
    assert "nowhere" in llm.model
    with pytest.raises(Exception, match="nowhere"):
        llm.complete("Hi.")
    with pytest.raises(ValueError, match="tokenizer"):
        LAGLLM(object())
    with pytest.raises(ValueError, match="misspelt"):
        LAGLLM("x", misspelt=1)


def test_logs_are_recalled_and_told(engine, embedder, tmp_path):
    with KVLogMemory(tmp_path / "m", embedder=embedder) as memory:
        llm = LAGLLM(engine, memory=memory, temperature=0, max_tokens=1)
        key = memory.add(VAULT)
        _ = llm.engine
        memory.flush()
        helped = llm.complete(QUESTION, max_tokens=24)
        lag = helped.raw["lag"]
        assert lag["log_ids"] == [key]
        assert lag["injected_tokens"] > 0
        details = helped.raw["usage"]["prompt_tokens_details"]
        assert details["cached_tokens"] == lag["injected_tokens"] + lag["reused_tokens"]
        assert "7741" in helped.text
        chat_model = LAGChatModel(engine, memory=memory, temperature=0, max_tokens=24)
        assert chat_model.invoke(QUESTION).content == helped.text
        assert llm.complete(QUESTION, k=0).raw["lag"]["log_ids"] == []
        assert llm.complete(QUESTION, kv_log_ids=[]).raw["lag"]["log_ids"] == []
        assert llm.complete("Hello there.", kv_log_ids=[key]).raw["lag"]["log_ids"] == [key]
        json.dumps(helped.raw)


def test_no_method_is_left_to_the_base_class():
    for name in ("chat", "complete", "stream_chat", "stream_complete"):
        for method in (name, f"a{name}"):
            assert method in vars(LAGLLM), method
        assert inspect.iscoroutinefunction(getattr(LAGLLM, f"a{name}"))


def test_a_prompt_is_given_once(llm):
    for complete in (llm.complete, lambda *a, **k: list(llm.stream_complete(*a, **k))[-1]):
        assert complete("Hi.", max_tokens=2).text == complete(prompt="Hi.", max_tokens=2).text
        with pytest.raises(TypeError):
            complete("Hi.", prompt="Hi.")
        with pytest.raises(ValueError, match="prompt"):
            complete()


def broken(city: str) -> str:
    """Tell the weather of a city."""
    raise RuntimeError("no weather today")


def test_tools_that_fail(llm):
    tools = [FunctionTool.from_defaults(broken)]
    asked = {"user_msg": "Weather in Rome?", "tool_choice": "broken", "max_tokens": 60}
    said = llm.predict_and_call(tools, **asked)
    assert said.sources[0].is_error
    assert "no weather today" in said.response
    with pytest.raises(ValueError, match="no weather today"):
        llm.predict_and_call(tools, **asked, error_on_tool_error=True)

    async def later():
        said = await llm.apredict_and_call(tools, **asked)
        assert said.sources[0].is_error
        with pytest.raises(ValueError, match="no weather today"):
            await llm.apredict_and_call(tools, **asked, error_on_tool_error=True)

    asyncio.run(later())


def test_async_calls_are_told_once(llm, events):
    async def later():
        await llm.achat(TALE)
        async for _ in await llm.astream_complete("Hi."):
            pass

    asyncio.run(later())
    told = [name for name in events if name.startswith("LLM") and "Progress" not in name]
    assert told == [
        "LLMChatStartEvent",
        "LLMChatEndEvent",
        "LLMCompletionStartEvent",
        "LLMCompletionEndEvent",
    ]
