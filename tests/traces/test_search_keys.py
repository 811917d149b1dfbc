"""By which texts a trace is found."""

from __future__ import annotations

from lag_integrations.traces.search_keys import MAX_KEYS, SearchKey, search_keys
from lag_integrations.traces.trace import Trace


def call(name, **args):
    return {"role": "assistant", "tool_calls": [{"name": name, "args": args, "id": name}]}


def test_task_response_and_what_was_done():
    trace = Trace.from_messages(
        [
            {"role": "user", "content": "When does the ferry leave?"},
            call("times", port="Kiel"),
            {"role": "tool", "content": "9:40", "tool_call_id": "times"},
            {"role": "assistant", "content": "It leaves at 9:40."},
        ]
    )
    assert search_keys(trace) == (
        SearchKey("task", "When does the ferry leave?"),
        SearchKey("response", "When does the ferry leave?\nIt leaves at 9:40."),
        SearchKey("step", 'times {"port": "Kiel"}'),
    )


def test_words_before_a_call_and_unreadable_arguments_are_kept():
    trace = Trace.from_messages(
        [
            {"role": "user", "content": "Go."},
            {
                "role": "assistant",
                "content": "First the door.",
                "tool_calls": [
                    {"name": "open", "args": "{not json", "id": "1"},
                    {"name": "walk", "args": {"über": 2}, "id": "2"},
                ],
            },
            {"role": "assistant", "content": "Done."},
        ]
    )
    assert search_keys(trace)[2].text == 'First the door.\nopen {not json\nwalk {"über": 2}'


def test_equal_texts_are_one_key_and_there_is_always_one():
    same = [{"role": "user", "content": "Again?"}]
    same += [{"role": "assistant", "content": text} for text in ("Yes.", "Yes.", "No.")]
    assert [key.kind for key in search_keys(Trace.from_messages(same))] == [
        "task",
        "response",
        "step",
    ]
    silent = Trace.from_messages([call("ring")], task="")
    assert search_keys(silent) == (SearchKey("step", "ring {}"),)
    nothing = Trace.from_messages([{"role": "system", "content": "Be brief."}], task=" ")
    assert len(search_keys(nothing)) == 1


def test_a_run_of_a_hundred_steps_has_the_first_and_long_texts_are_cut():
    messages = [{"role": "user", "content": "x" * 10_000}]
    messages += [call("step", number=number) for number in range(100)]
    messages += [{"role": "assistant", "content": "Done."}]
    keys = search_keys(Trace.from_messages(messages))
    assert len(keys) == MAX_KEYS
    # The task leaves no room for the response, so that both are the same key.
    assert [key.kind for key in keys[:3]] == ["task", "step", "step"]
    assert keys[1].text == 'step {"number": 0}'
    assert max(len(key.text) for key in keys) == 4_000


def test_a_turn_of_a_conversation_is_found_with_what_it_refers_to():
    talk = [
        {"role": "user", "content": "Tell me of the Team plan."},
        {"role": "assistant", "content": "It has chats and maps."},
    ]
    turn = [
        {"role": "user", "content": "And how much does it cost?"},
        {"role": "assistant", "content": "18 euros a seat."},
    ]
    earlier = Trace.from_messages(talk).messages
    trace = Trace.from_messages(turn, earlier=earlier)
    asked = "Tell me of the Team plan.\nAnd how much does it cost?"
    assert search_keys(trace) == (
        SearchKey("task", asked),
        SearchKey("response", f"{asked}\n18 euros a seat."),
    )
    assert trace.content_hash != Trace.from_messages(turn).content_hash
    assert Trace.from_json(trace.to_json()) == trace
