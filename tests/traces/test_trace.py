from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from llama_index.core.base.llms.types import ChatMessage, TextBlock, ToolCallBlock

from lag_integrations import Message, ToolCall, Trace
from lag_integrations.errors import TraceError
from lag_integrations.traces.message_order import in_call_order

texts = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
calls = st.builds(
    ToolCall,
    name=texts,
    args=st.dictionaries(texts, json_values, max_size=3) | texts,
    id=st.none() | texts,
)
messages = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=texts | st.lists(json_values, max_size=3),
    tool_calls=st.lists(calls, max_size=2).map(tuple),
    tool_call_id=st.none() | texts,
    name=st.none() | texts,
    status=st.sampled_from([None, "success", "error"]),
    id=st.none() | texts,
)


@given(
    steps=st.lists(messages, min_size=1, max_size=4),
    task=texts,
    outcome=st.sampled_from(["success", "failure", "incomplete", "unknown"]),
    metadata=st.dictionaries(texts, json_values, max_size=3),
)
def test_json_round_trip_is_lossless(steps, task, outcome, metadata):
    steps = [*steps, Message(role="assistant", content="said")]
    trace = Trace.from_messages(steps, task=task, outcome=outcome, metadata=metadata)
    again = Trace.from_json(trace.to_json())
    assert again == trace
    assert again.content_hash == trace.content_hash


def test_from_chat_dicts_and_openai_tool_calls():
    trace = Trace.from_messages(
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "Weather in Oslo?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
                    }
                ],
            },
            {"role": "tool", "content": "Rain", "tool_call_id": "c1"},
            {"role": "assistant", "content": "It rains."},
        ],
        outcome="success",
    )
    assert [message.role for message in trace.messages] == [
        "system", "user", "assistant", "tool", "assistant",
    ]  # fmt: skip
    assert trace.messages[2].tool_calls == (
        ToolCall(name="weather", args={"city": "Oslo"}, id="c1"),
    )
    assert trace.task == "Weather in Oslo?"
    assert trace.last_response == "It rains."


def test_from_langchain_messages():
    trace = Trace.from_messages(
        [
            SystemMessage("Be brief."),
            HumanMessage([{"type": "text", "text": "Look"}, {"type": "image", "url": "x"}]),
            AIMessage("", tool_calls=[{"name": "search", "args": {"q": "x"}, "id": "1"}]),
            ToolMessage("found", tool_call_id="1", status="error"),
            AIMessage("Done"),
        ]
    )
    assert trace.messages[1].text == "Look"
    assert trace.messages[1].content[1] == {"type": "image", "url": "x"}
    assert trace.messages[2].tool_calls[0].name == "search"
    assert trace.messages[3].status == "error"


def test_from_llama_index_messages():
    calls = ToolCallBlock(tool_name="search", tool_kwargs={"q": "x"}, tool_call_id="1")
    trace = Trace.from_messages(
        [
            ChatMessage(role="system", content="Be brief."),
            ChatMessage(role="user", content="Look"),
            ChatMessage(role="assistant", blocks=[TextBlock(text="I look."), calls]),
            ChatMessage(role="tool", content="found", additional_kwargs={"tool_call_id": "1"}),
            ChatMessage(role="chatbot", content="Done"),
        ]
    )
    roles = ["system", "user", "assistant", "tool", "assistant"]
    assert [step.role for step in trace.messages] == roles
    assert (trace.task, trace.last_response) == ("Look", "Done")
    assert trace.messages[2].text == "I look."
    assert trace.messages[2].tool_calls == (ToolCall(name="search", args={"q": "x"}, id="1"),)
    assert trace.messages[3].tool_call_id == "1"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ([], "empty"),
        ([{"role": "user", "content": "  "}], "empty"),
        ([{"role": "wizard", "content": "x"}], "wizard"),
        ([{"role": "user", "content": 7}], "content"),
        ([{"role": "assistant", "content": "", "tool_calls": ["x"]}], "tool call"),
    ],
)
def test_bad_messages_say_what_is_wrong(source, said):
    with pytest.raises(TraceError, match=said):
        Trace.from_messages(source)


def test_bad_json_does_not_repeat_the_content():
    with pytest.raises(TraceError) as caught:
        Trace.from_json('{"messages": "SECRET", "task": "x"}')
    assert "SECRET" not in str(caught.value)


def test_content_hash_ignores_ids_and_times_only():
    first = Trace.from_messages([{"role": "user", "content": "a"}], id="1")
    second = Trace.from_messages([{"role": "user", "content": "a"}], id="2")
    other = Trace.from_messages([{"role": "user", "content": "b"}])
    assert first.content_hash == second.content_hash != other.content_hash


def test_halves_of_pairs_are_replaced():
    """A lone surrogate is valid in a Python string and nowhere else."""
    trace = Trace.from_messages(
        [
            {"role": "user", "content": "caf\ud83d\ude00 \ud800?"},
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "\udfff!"}],
                "tool_calls": [{"name": "f", "args": {"\ud800": ["\ud800"]}}],
            },
        ],
        metadata={"key": "\ud800"},
    )
    assert trace.messages[0].text == "caf\U0001f600 \ufffd?"
    assert trace.messages[1].text == "\ufffd!"
    assert Trace.from_json(trace.to_json()) == trace
    assert trace.content_hash == Trace.from_json(trace.to_json()).content_hash


@pytest.mark.parametrize(
    "message",
    [
        {"role": ["user"], "content": "x"},
        {"role": "assistant", "content": "x", "tool_calls": 5},
        {"role": "assistant", "content": "x", "tool_calls": [5]},
        {"role": "user", "content": 5},
    ],
)
def test_malformed_messages_are_refused(message):
    with pytest.raises(TraceError):
        Trace.from_messages([message])


# The order of results


def conversation(text):
    """Messages in short: ``>a b`` calls a and b, ``a`` is a's result, ``.`` the user speaks."""
    steps = []
    for number, word in enumerate(text.split()):
        if word == ".":
            steps.append({"role": "user", "content": str(number)})
        elif word[0] == ">":
            asked = [{"name": "f", "id": id} for id in word[1:]]
            steps.append({"role": "assistant", "content": str(number), "tool_calls": asked})
        else:
            id = None if word == "_" else word
            steps.append({"role": "tool", "content": str(number), "tool_call_id": id})
    return steps


@pytest.mark.parametrize(
    ("said", "logged"),
    [
        (". >abc c b a >", "0 1 4 3 2 5"),
        (". >ab a b >ab b a >", "0 1 2 3 4 6 5 7"),  # ids that are given anew
        (". >ab b . a >", "0 1 2 3 4 5"),  # never past another message
        (". >a >b b a >", "0 1 2 4 3 5"),  # a message for each call
        (". >ab . > b a >", "0 1 2 3 5 4 6"),  # a tool asked a model
        (". >ab . >cd b d c a >", "0 1 2 3 6 5 7 4 8"),  # a tool was an agent
        (". >ab x b a y >", "0 1 4 3 2 5 6"),  # of calls that nobody made
        (". >abc c _ a >", "0 1 4 3 2 5"),
        (". >ab _ _ >", "0 1 2 3 4"),
        (". >aab b a a >", "0 1 3 4 2 5"),
        (". a >a b >", "0 1 2 3 4"),
    ],
)
def test_results_are_in_the_order_of_their_calls(said, logged):
    trace = Trace.from_messages(conversation(said))
    assert [step.text for step in trace.messages] == logged.split()


@given(
    st.lists(
        st.sampled_from(["a", "b", "c", "x", "_", ".", ">", ">a", ">ab", ">cba", ">bb"]),
        min_size=1,
        max_size=12,
    ).map(lambda words: conversation(" ".join([".", *words])))
)
def test_ordering_only_moves_results_among_themselves(steps):
    given_ = [Message(**step) for step in steps]
    ordered = in_call_order(given_)
    assert in_call_order(ordered) == ordered
    assert sorted(step.text for step in ordered) == sorted(step.text for step in given_)
    for before, after in zip(given_, ordered, strict=True):
        assert after.role == before.role
        assert after == before or (before.tool_call_id and after.tool_call_id)


@given(st.permutations("abcde"), st.permutations("abcde"))
def test_tools_may_end_in_any_order(asked, ended):
    trace = Trace.from_messages(conversation(f". >{''.join(asked)} {' '.join(ended)} >"))
    assert [step.tool_call_id for step in trace.messages[2:-1]] == asked


def test_a_stored_trace_is_read_as_it_was_written():
    """Its log's id is its content's hash."""
    steps = tuple(Trace.from_messages([step]).messages[0] for step in conversation(". >ab b a >"))
    stored = Trace(messages=steps, task="0")
    again = Trace.from_json(stored.to_json())
    assert [step.text for step in again.messages] == list("01234")
    assert again.content_hash == stored.content_hash
    assert again.content_hash != Trace.from_messages(steps).content_hash


CHAT = [{"role": "user", "content": "Look."}, {"role": "assistant", "content": "Done."}]


def nested(levels: int) -> dict:
    value: dict = {}
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize("levels", [101, 250, 900, 5_000])
def test_metadata_beyond_what_can_be_read_back_is_refused(levels):
    with pytest.raises(TraceError, match="nested more than 100 levels"):
        Trace.from_messages(CHAT, metadata={"x": nested(levels)})
    with pytest.raises(TraceError, match="too many digits"):
        Trace.from_messages(CHAT, metadata={"x": [10**5_000]})


@pytest.mark.parametrize("levels", [60, 85, 120, 900, 100_000])
@pytest.mark.parametrize("as_text", [True, False], ids=["text", "object"])
def test_a_call_of_any_depth_is_kept_and_can_be_read_back(levels, as_text):
    args = '{"a":' * levels + "1" + "}" * levels if as_text else nested(min(levels, 5_000))
    call = {"name": "look", "args": args, "id": "1"}
    if as_text:
        call = {"id": "1", "function": {"name": "look", "arguments": args}}
    steps = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "assistant", "content": "Done."},
    ]
    trace = Trace.from_messages(steps)
    assert Trace.from_json(trace.to_json()) == trace
    assert isinstance(trace.messages[1].tool_calls[0].args, dict if levels < 90 else str)
