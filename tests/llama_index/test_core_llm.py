"""What core asserts of its LLMs, of LAGLLM: tests/llms/test_callbacks, test_custom,
test_function_calling, test_predict_and_call, test_structured_llm, test_instrumentation_events, and
tests/program/test_function_program, test_llm_program, test_streaming_utils."""

from __future__ import annotations

import copy
import json

import pytest
from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.react.output_parser import ReActOutputParser
from llama_index.core.base.llms.types import ChatMessage, TextBlock, ToolCallBlock
from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.callbacks.schema import EventPayload
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms.llm import LLM
from llama_index.core.output_parsers.pydantic import PydanticOutputParser
from llama_index.core.program import FunctionCallingProgram, LLMTextCompletionProgram
from llama_index.core.program.function_program import get_function_tool
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel, Field, PrivateAttr, field_validator

from lag_integrations.errors import ToolChoiceError
from lag_integrations.llama_index import LAGLLM
from lag_integrations.llama_index.message_tag import tagged
from tests.conftest import qa
from tests.llama_index.recorder import added
from tests.puppet import calls

HI = [ChatMessage(role="user", content="Hi.")]


class Told(BaseCallbackHandler):
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


# Callbacks and events


@pytest.mark.parametrize("answer", ["", "<think>Hm.</think>"])
async def test_streams_of_nothing_end_well(told, puppet, answer):
    puppet.says(answer)
    streams = [
        list(told.stream_chat(HI)),
        [part async for part in await told.astream_chat(HI)],
        list(told.stream_complete("Hi.")),
        [part async for part in await told.astream_complete("Hi.")],
    ]
    for stream in streams:
        assert stream
        assert "".join(part.delta for part in stream) == ""
        assert stream[-1].raw["finish_reason"] == "stop"
    assert streams[0][-1].message.content in ("", None)
    assert streams[2][-1].text == ""


async def test_streamed_prompts_may_be_named_but_not_twice(told, puppet):
    puppet.says("Hello there.")
    assert "".join(part.delta for part in told.stream_complete(prompt="Hi.")) == "Hello there."
    stream = await told.astream_complete(prompt="Hi.")
    assert "".join([part.delta async for part in stream]) == "Hello there."
    assert (await told.acomplete(prompt="Hi.")).text == "Hello there."
    with pytest.raises(TypeError):
        told.stream_complete("Hi.", prompt="Hi.")
    with pytest.raises(TypeError):
        await told.acomplete("Hi.", prompt="Hi.")
    with pytest.raises(ValueError, match="prompt"):
        told.stream_complete()
    with pytest.raises(ValueError, match="prompt"):
        await told.astream_complete()


async def test_no_observer_is_told_a_secret(puppet, events):
    puppet.says("Hello.")
    handler = Told()
    llm = LAGLLM(
        puppet,
        model_kwargs={"token": "hf_secret"},
        callback_manager=CallbackManager([handler]),
    )
    llm.complete("Hi.")
    llm.chat(HI)
    list(llm.stream_chat(HI))
    await llm.achat(HI)
    told = [event for event in events if hasattr(event, "model_dict")]
    assert len(handler.models) == len(told) == 4
    for model in [*handler.models, *(event.model_dict for event in told)]:
        assert model["model"] == llm.model
        assert "hf_secret" not in str(model)
        json.dumps(model)
    for event in events:
        assert "hf_secret" not in event.model_dump_json()


def test_an_event_that_is_dumped_changes_no_response(told, puppet, events):
    puppet.says("Well. " + calls("clock"))
    tools = [FunctionTool.from_defaults(clock)]
    responses = [*told.stream_chat_with_tools(tools, "Hi."), told.complete("Hi.")]
    before = copy.deepcopy(responses)
    dumped = [event.model_dump() for event in events if "InProgress" not in event.class_name()]
    ended = [each["response"] for each in dumped if each.get("response")]
    assert [each["raw"] for each in ended] == [responses[-2].raw, responses[-1].raw]
    assert [type(each["raw"]) for each in ended] == [dict, dict]
    assert responses == before


def test_it_may_share_a_callback_manager_that_is_none(puppet):
    puppet.says("Hello.")
    assert LAGLLM(puppet, callback_manager=None).complete("Hi.").text == "Hello."


# Function calling


def clock() -> str:
    """Tell the time."""
    return "Noon."


def look(city: str) -> str:
    """Tell the weather."""
    return f"Rain in {city}."


class Person(BaseModel):
    name: str

    @field_validator("name")
    @classmethod
    def _known(cls, name):
        raise ValueError(f"Nobody knows {name}.")


TOOLS = [FunctionTool.from_defaults(clock), FunctionTool.from_defaults(look)]
TWO = "Let me see.\n" + calls("look", city="Oslo") + "\n" + calls("clock")


async def test_all_calls_are_made_where_several_are_allowed(told, puppet):
    puppet.says(TWO)
    for said in (
        told.predict_and_call(TOOLS, "Hi.", allow_parallel_tool_calls=True),
        await told.apredict_and_call(TOOLS, "Hi.", allow_parallel_tool_calls=True),
    ):
        assert [source.content for source in said.sources] == ["Rain in Oslo.", "Noon."]
        assert said.response == "Rain in Oslo.\n\nNoon."


async def test_only_the_first_call_is_made_else(told, puppet):
    puppet.says(TWO)
    for said in (
        told.predict_and_call(TOOLS, "Hi."),
        await told.apredict_and_call(TOOLS, "Hi."),
    ):
        assert said.response == "Rain in Oslo."
        assert len(said.sources) == 1
    for response in (
        told.chat_with_tools(TOOLS, "Hi."),
        list(told.stream_chat_with_tools(TOOLS, "Hi."))[-1],
        [part async for part in await told.astream_chat_with_tools(TOOLS, "Hi.")][-1],
    ):
        assert [block.block_type for block in response.message.blocks] == ["text", "tool_call"]
        assert len(response.message.additional_kwargs["tool_calls"]) == 1


async def test_an_answer_without_a_call(told, puppet):
    puppet.says("No idea.")
    with pytest.raises(ValueError, match="tool_required"):
        told.predict_and_call(TOOLS, "Hi.")
    with pytest.raises(ValueError, match="tool_required"):
        await told.apredict_and_call(TOOLS, "Hi.")
    for said in (
        told.predict_and_call(TOOLS, "Hi.", error_on_no_tool_call=False),
        await told.apredict_and_call(TOOLS, "Hi.", error_on_no_tool_call=False),
    ):
        assert (said.response, said.sources) == ("No idea.", [])


async def test_a_call_that_a_model_refuses_is_an_error_of_the_tool(told, puppet):
    puppet.says(calls("Person", name="Jo"))
    tool = get_function_tool(Person)
    for said in (
        told.predict_and_call([tool], "Who?"),
        await told.apredict_and_call([tool], "Who?"),
    ):
        assert said.sources[0].is_error
    with pytest.raises(ValueError, match="Nobody knows Jo"):
        told.predict_and_call([tool], "Who?", error_on_tool_error=True)
    with pytest.raises(ValueError, match="Nobody knows Jo"):
        await told.apredict_and_call([tool], "Who?", error_on_tool_error=True)


async def test_streamed_calls_are_those_of_a_chat(told, puppet):
    puppet.says(TWO)
    chat = told.chat_with_tools(TOOLS, "Hi.", allow_parallel_tool_calls=True)
    streams = [
        list(told.stream_chat_with_tools(TOOLS, "Hi.", allow_parallel_tool_calls=True)),
        [
            part
            async for part in await told.astream_chat_with_tools(
                TOOLS, "Hi.", allow_parallel_tool_calls=True
            )
        ],
    ]

    def made(response):
        selections = told.get_tool_calls_from_response(response, error_on_no_tool_call=False)
        return [(each.tool_name, each.tool_kwargs) for each in selections]

    assert made(chat) == [("look", {"city": "Oslo"}), ("clock", {})]
    for stream in streams:
        assert made(stream[-1]) == made(chat)
        assert next(filter(None, map(made, stream))) == made(chat)[:1]
        assert "".join(part.delta for part in stream) == chat.message.content
        ids = [part.tool_id for part in told.get_tool_calls_from_response(stream[-1])]
        assert len(set(ids)) == 2
        assert all(ids)


def test_calls_are_told_in_the_form_of_old_too(told, puppet):
    """Where core's streamed objects, token counts and summaries look for them."""
    puppet.says(calls("look", city="Köln"))
    message = told.chat_with_tools(TOOLS, "Hi.").message
    (block,) = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    (call,) = message.additional_kwargs["tool_calls"]
    assert (call["id"], call["type"]) == (block.tool_call_id, "function")
    assert call["function"]["name"] == block.tool_name == "look"
    assert json.loads(call["function"]["arguments"]) == block.tool_kwargs == {"city": "Köln"}
    puppet.says("Fine.")
    result = {"role": "tool", "additional_kwargs": {"tool_call_id": call["id"]}}
    told.chat([*HI, message, ChatMessage(content="Rain.", **result)])
    assert puppet.prompts[0].count('"Köln"') == 1
    assert "tool_calls" not in told.chat(HI).message.additional_kwargs


def test_a_message_may_be_the_question_and_a_history_goes_before_it(told, puppet):
    puppet.says("Fine.")
    history = [*HI, ChatMessage(role="assistant", content="Hello.")]
    told.chat_with_tools([], user_msg=ChatMessage(content="How are you?"), chat_history=history)
    told.chat_with_tools([], user_msg="How are you?", chat_history=history)
    told.chat([*history, ChatMessage(content="How are you?")])
    assert puppet.prompts[0] == puppet.prompts[1] == puppet.prompts[2]
    assert len(history) == 2


async def test_tools_can_be_called_the_react_way(told, puppet):
    """As of an LLM without calls of its own: text that says which tool to call."""
    puppet.says('Thought: I look.\nAction: look\nAction Input: {"city": "Oslo"}\n')
    asked = {
        "tools": TOOLS,
        "react_chat_formatter": ReActChatFormatter.from_defaults(),
        "output_parser": ReActOutputParser(),
        "user_msg": HI[0],
        "chat_history": [],
    }
    said = await LLM.apredict_and_call(told, **asked)
    assert said.response == "Rain in Oslo."
    assert [source.content for source in said.sources] == ["Rain in Oslo."]


# Structured prediction


class Song(BaseModel):
    title: str


class Album(BaseModel):
    """An album."""

    title: str
    artist: str
    songs: list[Song]


ALBUM = Album(title="hello", artist="world", songs=[Song(title="one"), Song(title="two")])
OTHER = Album(title="hello 2", artist="world 2", songs=[])
PROMPT = "Make an album of {topic}."


def made(*albums: Album) -> str:
    return "\n".join(calls("Album", **album.model_dump()) for album in albums)


async def test_a_program_makes_an_object(told, puppet):
    puppet.says(made(ALBUM))
    program = FunctionCallingProgram.from_defaults(Album, prompt_template_str=PROMPT, llm=told)
    assert program(topic="songs") == ALBUM
    assert await program.acall(topic="songs") == ALBUM
    assert all("Make an album of songs." in prompt for prompt in puppet.prompts)
    assert told.structured_predict(Album, PromptTemplate(PROMPT), topic="songs") == ALBUM


async def test_a_program_makes_several_objects(told, puppet):
    puppet.says(made(ALBUM, OTHER))
    program = FunctionCallingProgram.from_defaults(
        Album,
        prompt_template_str=PROMPT,
        llm=told,
        allow_parallel_tool_calls=True,
        tool_required=False,
    )
    assert program(topic="songs") == [ALBUM, OTHER]
    assert await program.acall(topic="songs") == [ALBUM, OTHER]


@pytest.mark.parametrize("choice", [{"type": "any"}, "Album", "required", None])
async def test_a_program_that_has_to_call_does(told, puppet, choice):
    program = FunctionCallingProgram.from_defaults(
        Album, prompt_template_str=PROMPT, llm=told, tool_choice=choice
    )
    puppet.says("Of course! Here is an album.")  # it would rather talk
    assert isinstance(program(topic="songs"), Album)
    assert isinstance(await program.acall(topic="songs"), Album)


async def test_a_program_without_a_call_says_so(told, puppet):
    puppet.says("Of course! Here is an album.")
    program = FunctionCallingProgram.from_defaults(
        Album, prompt_template_str=PROMPT, llm=told, tool_required=False
    )
    with pytest.raises(ToolChoiceError, match="called no tool"):
        program(topic="songs")
    with pytest.raises(ToolChoiceError, match="called no tool"):
        await program.acall(topic="songs")


async def test_a_program_whose_object_is_refused_says_so(told, puppet):
    puppet.says(calls("Person", name="Jo"))
    program = FunctionCallingProgram.from_defaults(
        Person, prompt_template_str=PROMPT, llm=told, tool_required=False
    )
    with pytest.raises(ValueError, match="Nobody knows Jo"):
        program(topic="people")
    with pytest.raises(ValueError, match="Nobody knows Jo"):
        await program.acall(topic="people")


class Names(BaseModel):
    names: list[str] = Field(default_factory=list)


class Count(BaseModel):
    count: int = 0


class Word(BaseModel):
    word: str = ""


@pytest.mark.parametrize(
    "wanted", [Names(names=["deep", "neural"]), Count(count=42), Word(word="hello")]
)
def test_a_single_field_with_a_default_gets_its_value(told, puppet, wanted):
    puppet.says(calls(type(wanted).__name__, **wanted.model_dump()))
    assert told.structured_predict(type(wanted), PromptTemplate("Go.")) == wanted


async def test_objects_can_be_streamed(told, puppet):
    puppet.says(made(ALBUM))
    prompt = PromptTemplate(PROMPT)
    assert list(told.stream_structured_predict(Album, prompt, topic="songs"))[-1] == ALBUM
    stream = await told.astream_structured_predict(Album, prompt, topic="songs")
    assert [album async for album in stream][-1] == ALBUM
    puppet.says("Of course! Here is an album.")  # it would rather talk
    assert isinstance(list(told.stream_structured_predict(Album, prompt, topic="x"))[-1], Album)
    stream = await told.astream_structured_predict(Album, prompt, topic="x")
    assert isinstance([album async for album in stream][-1], Album)


@pytest.mark.parametrize("messages", [False, True])
async def test_a_text_program_parses_what_is_said(told, puppet, messages):
    puppet.says(ALBUM.model_dump_json())
    template = {"prompt": ChatPromptTemplate(message_templates=HI)}
    program = LLMTextCompletionProgram.from_defaults(
        output_parser=PydanticOutputParser(output_cls=Album),
        llm=told,
        **(template if messages else {"prompt_template_str": PROMPT}),
    )
    assert program(topic="songs") == ALBUM
    assert await program.acall(topic="songs") == ALBUM
    # The schema is told once.
    assert all(prompt.count("JSON schema to follow") == 1 for prompt in puppet.prompts)


async def test_a_structured_llm_answers_with_objects(told, puppet):
    puppet.says(made(ALBUM))
    structured = told.as_structured_llm(Album)
    assert structured.metadata == told.metadata
    for response in (
        structured.chat(HI),
        await structured.achat(HI),
        list(structured.stream_chat(HI))[-1],
        [part async for part in await structured.astream_chat(HI)][-1],
        structured.complete("Hi."),
        await structured.acomplete("Hi."),
    ):
        assert response.raw == ALBUM
    assert json.loads(structured.chat(HI).message.content) == ALBUM.model_dump()


@pytest.mark.parametrize(
    "text",
    [
        "a plain text",
        "of {a message} and {topic}",
        "{{twice}} {once}",
        json.dumps({"tests": [{"foo": "bar"}, {"baz": "{test}"}]}),
    ],
)
def test_a_structured_llm_reads_braces_as_they_were_written(told, puppet, text):
    puppet.says(made(ALBUM))
    told.as_structured_llm(Album).chat([ChatMessage(role="user", content=text)])
    assert f"user\n{text}<|im_end|>" in puppet.prompts[0]


def test_a_structured_llm_is_given_the_logs_that_a_memory_names(told, puppet, memory):
    puppet.says(made(ALBUM))
    memory.attach(puppet)
    (key,) = added(memory, qa("Which album?", "The one of songs."))
    told.as_structured_llm(Album).chat([tagged(HI[0], memory, [key])])
    assert puppet.injected == [1]


def test_blocks_that_were_given_stay_as_they_are(told, puppet):
    """An answer's blocks become part of a history that others change."""
    puppet.says("Well. " + calls("clock"))
    *_, before, last = told.stream_chat_with_tools(TOOLS, "Hi.")
    last.message.blocks[0] = TextBlock(text="changed")
    assert before.message.content == "Well."
    assert isinstance(last.message.blocks[1], ToolCallBlock)
