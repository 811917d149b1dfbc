"""What LlamaIndex expects of a `FunctionCallingLLM`: streams, tool calls, structured prediction."""

from __future__ import annotations

import copy
import json

import pytest
from llama_index.core.base.llms.types import ChatMessage, TextBlock, ToolCallBlock
from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.callbacks.schema import EventPayload
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel, PrivateAttr

from lag_integrations.errors import ToolChoiceError
from lag_integrations.llama_index import LAGLLM
from lag_integrations.llama_index.message_tag import tagged
from tests.conftest import qa
from tests.fake_engine import calls
from tests.helpers import added

HI = [ChatMessage(role="user", content="Hi.")]


class LegacyHandler(BaseCallbackHandler):
    """What a handler of the old kind is told of the model."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.models = []

    def on_event_start(self, event_type, payload=None, **kwargs):
        if payload and EventPayload.SERIALIZED in payload:
            self.models.append(payload[EventPayload.SERIALIZED])
        return ""

    def on_event_end(self, *args, **kwargs):
        pass

    def start_trace(self, trace_id=None):
        pass

    def end_trace(self, *args, **kwargs):
        pass


class Kept(BaseEventHandler):
    """All events."""

    _events: list = PrivateAttr(default_factory=list)

    def handle(self, event, **kwargs):
        self._events.append(event)


@pytest.fixture
def events():
    root = get_dispatcher()
    handler = Kept()
    root.add_event_handler(handler)
    yield handler._events
    root.event_handlers.remove(handler)


@pytest.mark.parametrize("answer", ["", "<think>Hm.</think>"])
async def test_streams_of_nothing_end_well(puppet_llm, puppet, answer):
    puppet.says(answer)
    streams = [
        list(puppet_llm.stream_chat(HI)),
        [part async for part in await puppet_llm.astream_chat(HI)],
        list(puppet_llm.stream_complete("Hi.")),
        [part async for part in await puppet_llm.astream_complete("Hi.")],
    ]
    for stream in streams:
        assert stream
        assert "".join(part.delta for part in stream) == ""
        assert stream[-1].raw["finish_reason"] == "stop"
    assert streams[0][-1].message.content in ("", None)
    assert streams[2][-1].text == ""


async def test_no_observer_is_told_a_secret(puppet, events):
    puppet.says("Hello.")
    handler = LegacyHandler()
    llm = LAGLLM(
        "some/model",
        model_kwargs={"token": "hf_secret"},
        callback_manager=CallbackManager([handler]),
    )
    llm._shared = LAGLLM(puppet)._shared  # as if it had been loaded
    llm.complete("Hi.")
    llm.chat(HI)
    list(llm.stream_chat(HI))
    await llm.achat(HI)
    shown = [event for event in events if hasattr(event, "model_dict")]
    assert len(handler.models) == len(shown) == 4
    for model in [*handler.models, *(event.model_dict for event in shown)]:
        assert model["model"] == llm.model
        assert "hf_secret" not in str(model)
        json.dumps(model)
    for event in events:
        assert "hf_secret" not in event.model_dump_json()


def test_an_event_that_is_dumped_changes_no_response(puppet_llm, puppet, events):
    puppet.says("Well. " + calls("clock"))
    tools = [FunctionTool.from_defaults(clock)]
    responses = [*puppet_llm.stream_chat_with_tools(tools, "Hi."), puppet_llm.complete("Hi.")]
    before = copy.deepcopy(responses)
    dumped = [event.model_dump() for event in events if "InProgress" not in event.class_name()]
    ended = [each["response"] for each in dumped if each.get("response")]
    assert [each["raw"] for each in ended] == [responses[-2].raw, responses[-1].raw]
    assert [type(each["raw"]) for each in ended] == [dict, dict]
    assert responses == before


def clock() -> str:
    """Tell the time."""
    return "Noon."


def look(city: str) -> str:
    """Tell the weather."""
    return f"Rain in {city}."


TOOLS = [FunctionTool.from_defaults(clock), FunctionTool.from_defaults(look)]


TWO = "Let me see.\n" + calls("look", city="Oslo") + "\n" + calls("clock")


async def test_all_calls_are_made_where_several_are_allowed(puppet_llm, puppet):
    puppet.says(TWO)
    for said in (
        puppet_llm.predict_and_call(TOOLS, "Hi.", allow_parallel_tool_calls=True),
        await puppet_llm.apredict_and_call(TOOLS, "Hi.", allow_parallel_tool_calls=True),
    ):
        assert [source.content for source in said.sources] == ["Rain in Oslo.", "Noon."]
        assert said.response == "Rain in Oslo.\n\nNoon."


async def test_only_the_first_call_is_made_else(puppet_llm, puppet):
    puppet.says(TWO)
    for said in (
        puppet_llm.predict_and_call(TOOLS, "Hi."),
        await puppet_llm.apredict_and_call(TOOLS, "Hi."),
    ):
        assert said.response == "Rain in Oslo."
        assert len(said.sources) == 1
    for response in (
        puppet_llm.chat_with_tools(TOOLS, "Hi."),
        list(puppet_llm.stream_chat_with_tools(TOOLS, "Hi."))[-1],
        [part async for part in await puppet_llm.astream_chat_with_tools(TOOLS, "Hi.")][-1],
    ):
        assert [block.block_type for block in response.message.blocks] == ["text", "tool_call"]
        assert len(response.message.additional_kwargs["tool_calls"]) == 1


async def test_an_answer_without_a_call(puppet_llm, puppet):
    puppet.says("No idea.")
    with pytest.raises(ValueError, match="tool_required"):
        puppet_llm.predict_and_call(TOOLS, "Hi.")
    with pytest.raises(ValueError, match="tool_required"):
        await puppet_llm.apredict_and_call(TOOLS, "Hi.")
    for said in (
        puppet_llm.predict_and_call(TOOLS, "Hi.", error_on_no_tool_call=False),
        await puppet_llm.apredict_and_call(TOOLS, "Hi.", error_on_no_tool_call=False),
    ):
        assert (said.response, said.sources) == ("No idea.", [])


async def test_streamed_calls_are_those_of_a_chat(puppet_llm, puppet):
    puppet.says(TWO)
    chat = puppet_llm.chat_with_tools(TOOLS, "Hi.", allow_parallel_tool_calls=True)
    streams = [
        list(puppet_llm.stream_chat_with_tools(TOOLS, "Hi.", allow_parallel_tool_calls=True)),
        [
            part
            async for part in await puppet_llm.astream_chat_with_tools(
                TOOLS, "Hi.", allow_parallel_tool_calls=True
            )
        ],
    ]

    def made(response):
        selections = puppet_llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)
        return [(each.tool_name, each.tool_kwargs) for each in selections]

    assert made(chat) == [("look", {"city": "Oslo"}), ("clock", {})]
    for stream in streams:
        assert made(stream[-1]) == made(chat)
        assert next(filter(None, map(made, stream))) == made(chat)[:1]
        assert "".join(part.delta for part in stream) == chat.message.content
        ids = [part.tool_id for part in puppet_llm.get_tool_calls_from_response(stream[-1])]
        assert len(set(ids)) == 2
        assert all(ids)


def test_calls_are_told_in_the_form_of_old_too(puppet_llm, puppet):
    """Where core's streamed objects, token counts and summaries look for them."""
    puppet.says(calls("look", city="Köln"))
    message = puppet_llm.chat_with_tools(TOOLS, "Hi.").message
    (block,) = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    (call,) = message.additional_kwargs["tool_calls"]
    assert (call["id"], call["type"]) == (block.tool_call_id, "function")
    assert call["function"]["name"] == block.tool_name == "look"
    assert json.loads(call["function"]["arguments"]) == block.tool_kwargs == {"city": "Köln"}
    puppet.says("Fine.")
    result = {"role": "tool", "additional_kwargs": {"tool_call_id": call["id"]}}
    puppet_llm.chat([*HI, message, ChatMessage(content="Rain.", **result)])
    assert puppet.prompts[0].count('"Köln"') == 1
    assert "tool_calls" not in puppet_llm.chat(HI).message.additional_kwargs


def test_a_message_may_be_the_question_and_a_history_goes_before_it(puppet_llm, puppet):
    puppet.says("Fine.")
    history = [*HI, ChatMessage(role="assistant", content="Hello.")]
    puppet_llm.chat_with_tools(
        [], user_msg=ChatMessage(content="How are you?"), chat_history=history
    )
    puppet_llm.chat_with_tools([], user_msg="How are you?", chat_history=history)
    puppet_llm.chat([*history, ChatMessage(content="How are you?")])
    assert puppet.prompts[0] == puppet.prompts[1] == puppet.prompts[2]
    assert len(history) == 2


class Song(BaseModel):
    title: str


class Album(BaseModel):
    """An album."""

    title: str
    artist: str
    songs: list[Song]


ALBUM = Album(title="hello", artist="world", songs=[Song(title="one"), Song(title="two")])


PROMPT = "Make an album of {topic}."


@pytest.mark.parametrize("choice", [{"type": "any"}, "Album", "required", None])
async def test_a_program_that_has_to_call_does(puppet_llm, puppet, choice):
    program = FunctionCallingProgram.from_defaults(
        Album, prompt_template_str=PROMPT, llm=puppet_llm, tool_choice=choice
    )
    puppet.says("Of course! Here is an album.")  # it would rather talk
    assert isinstance(program(topic="songs"), Album)
    assert isinstance(await program.acall(topic="songs"), Album)


async def test_a_program_without_a_call_says_so(puppet_llm, puppet):
    puppet.says("Of course! Here is an album.")
    program = FunctionCallingProgram.from_defaults(
        Album, prompt_template_str=PROMPT, llm=puppet_llm, tool_required=False
    )
    with pytest.raises(ToolChoiceError, match="called no tool"):
        program(topic="songs")
    with pytest.raises(ToolChoiceError, match="called no tool"):
        await program.acall(topic="songs")


async def test_objects_can_be_streamed(puppet_llm, puppet):
    puppet.says(calls("Album", **ALBUM.model_dump()))
    prompt = PromptTemplate(PROMPT)
    assert list(puppet_llm.stream_structured_predict(Album, prompt, topic="songs"))[-1] == ALBUM
    stream = await puppet_llm.astream_structured_predict(Album, prompt, topic="songs")
    assert [album async for album in stream][-1] == ALBUM
    puppet.says("Of course! Here is an album.")  # it would rather talk
    assert isinstance(
        list(puppet_llm.stream_structured_predict(Album, prompt, topic="x"))[-1], Album
    )
    stream = await puppet_llm.astream_structured_predict(Album, prompt, topic="x")
    assert isinstance([album async for album in stream][-1], Album)


def test_a_structured_llm_is_given_the_logs_that_a_memory_names(puppet_llm, puppet, memory):
    puppet.says(calls("Album", **ALBUM.model_dump()))
    memory.attach(puppet)
    (key,) = added(memory, qa("Which album?", "The one of songs."))
    puppet_llm.as_structured_llm(Album).chat([tagged(HI[0], memory, [key])])
    assert puppet.injected == [1]


def test_blocks_that_were_given_stay_as_they_are(puppet_llm, puppet):
    """An answer's blocks become part of a history that others change."""
    puppet.says("Well. " + calls("clock"))
    *_, before, last = puppet_llm.stream_chat_with_tools(TOOLS, "Hi.")
    last.message.blocks[0] = TextBlock(text="changed")
    assert before.message.content == "Well."
    assert isinstance(last.message.blocks[1], ToolCallBlock)
