"""Capture of checkpointed threads: what is new in a turn, and runs that a human interrupts."""

from __future__ import annotations

import asyncio
import operator
import threading
from typing import Annotated, TypedDict
from uuid import uuid4

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, HumanInTheLoopMiddleware, PIIMiddleware
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from lag_integrations import KVLogMemory
from lag_integrations.langchain.capture import pending_runs
from tests.helpers import captured
from tests.langchain.fake_chat_model import RAIN, FakeChatModel, call, look, said

pytestmark = pytest.mark.usefixtures("no_worker")

APPROVE = Command(resume={"decisions": [{"type": "approve"}]})


def ask(question: str = "Weather?") -> dict:
    return {"messages": [("user", question)]}


def config(memory, thread="t1", **fields):
    return {
        "callbacks": [memory.callback_handler()],
        "configurable": {"thread_id": thread},
        **fields,
    }


def weatherman(*answers, middleware=(), **kwargs):
    answers = answers or (call("look", city="Oslo"), "It rains.")
    return create_agent(
        FakeChatModel(*answers),
        [look],
        middleware=middleware,
        checkpointer=InMemorySaver(),
        **kwargs,
    )


def human():
    return HumanInTheLoopMiddleware(interrupt_on={"look": True})


# Turns


def test_each_turn_holds_what_is_new(memory, embedder):
    again = call("look", "c1", city="Rome")  # some models number their calls anew in each turn
    agent = weatherman(
        call("look", city="Oslo"),
        "It rains.",
        again,
        "There, too.",
        "You are welcome.",
        system_prompt="Be brief.",
    )
    agent.invoke(ask(), config(memory))
    agent.invoke(ask("And in Rome?"), config(memory))
    path = memory.path
    memory.close()
    with KVLogMemory(path, embedder=embedder) as memory:  # nothing is remembered but the ledger
        agent.invoke(ask("Thanks"), config(memory))
        agent.invoke(ask("Weather?"), config(memory, "t2"))
        traces = captured(memory)
    assert [said(trace) for trace in traces] == [
        ["system: Be brief.", *RAIN],
        [
            "system: Be brief.",
            "user: And in Rome?",
            "assistant: look(c1)",
            "tool: Rain in Rome",
            "assistant: There, too.",
        ],
        ["system: Be brief.", "user: Thanks", "assistant: You are welcome."],
        ["system: Be brief.", "user: Weather?", "assistant: You are welcome."],
    ]
    assert [trace.task for trace in traces] == ["Weather?", "And in Rome?", "Thanks", "Weather?"]
    assert [trace.metadata["thread_id"] for trace in traces] == ["t1", "t1", "t1", "t2"]
    assert all(step.id for step in traces[0].messages[1:])


@pytest.mark.parametrize("restart", [False, True])
def test_the_same_words_in_a_later_turn_are_new(memory, embedder, restart):
    agent = weatherman("Sure?", "Really?", "Done.")
    for _ in range(3):
        agent.invoke(ask("yes"), config(memory))
        if restart:
            memory.close()
            memory = KVLogMemory(memory.path, embedder=embedder)
    traces = captured(memory)
    memory.close()
    assert [said(trace) for trace in traces] == [
        ["user: yes", "assistant: Sure?"],
        ["user: yes", "assistant: Really?"],
        ["user: yes", "assistant: Done."],
    ]


def test_a_chat_by_hand_is_logged_turn_by_turn(memory):
    talk = [SystemMessage("Be brief."), HumanMessage("Tell me of the Team plan.")]
    model = FakeChatModel("It has chats and maps.", "18 euros a seat.")
    with memory.capture():
        talk += [model.invoke(talk), HumanMessage("And how much does it cost?")]
        model.invoke(talk)
    first, second = captured(memory)
    assert said(first) == [
        "system: Be brief.",
        "user: Tell me of the Team plan.",
        "assistant: It has chats and maps.",
    ]
    assert said(second) == [
        "system: Be brief.",
        "user: And how much does it cost?",
        "assistant: 18 euros a seat.",
    ]
    assert first.earlier == ()
    texts = [message.text for message in second.earlier]
    assert texts == ["Tell me of the Team plan.", "It has chats and maps."]
    memory.flush()
    assert memory.recall("And how much does it cost?") == []  # of something else
    asked = memory.recall("And how much does it cost?", before="I was told of a Team plan.")
    assert asked[0].trace == second
    assert memory.recall("How much does the Team plan cost?", k=2)[0].trace == second


def test_turns_before_the_first_captured_one_are_its_context(memory):
    agent = weatherman("One.", "Two.", "Three.")
    agent.invoke(ask("1?"), {"configurable": {"thread_id": "t1"}})
    agent.invoke(ask("2?"), config(memory))
    agent.invoke(ask("3?"), config(memory))
    first, second = captured(memory)
    assert said(first) == ["user: 2?", "assistant: Two."]
    assert [message.text for message in first.earlier] == ["1?", "One."]
    assert [message.text for message in second.earlier] == ["1?", "One.", "2?", "Two."]
    assert first.task == "2?"
    assert said(second) == ["user: 3?", "assistant: Three."]


def test_messages_without_ids_are_known_by_content(memory):
    class State(TypedDict):
        chat: Annotated[list, operator.add]  # gives no ids

    model = FakeChatModel(AIMessage("One.", id="1"), AIMessage("Two.", id="2"))
    graph = StateGraph(State)
    graph.add_node("node", lambda state: {"chat": [AIMessage(model.invoke(state["chat"]).text)]})
    graph.add_edge(START, "node")
    app = graph.compile(checkpointer=InMemorySaver())
    app.invoke({"chat": [HumanMessage("yes")]}, config(memory))
    app.invoke({"chat": [HumanMessage("yes")]}, config(memory))
    assert [said(trace) for trace in captured(memory)] == [
        ["user: yes", "assistant: One."],
        ["user: yes", "assistant: Two."],
    ]


def test_a_run_that_goes_on_after_an_error_is_whole(memory):
    agent = weatherman(call("look", city="Oslo"), OSError("down"), "It rains.")
    with pytest.raises(OSError, match="down"):
        agent.invoke(ask(), config(memory))
    agent.invoke(None, config(memory))
    failed, whole = captured(memory)
    assert (failed.outcome, said(failed)) == ("failure", RAIN[:3])
    assert (whole.outcome, said(whole)) == ("success", RAIN)
    assert whole.task == "Weather?"


def test_a_run_that_goes_on_after_it_was_abandoned_is_whole(memory):
    agent = weatherman()
    for _ in agent.stream(ask(), config(memory)):
        break  # after the model's call
    agent.invoke(None, config(memory))
    left, whole = captured(memory)
    assert (left.outcome, said(left)) == ("incomplete", RAIN[:2])
    assert (whole.outcome, said(whole)) == ("success", RAIN)


# Interrupts


@pytest.mark.parametrize("way", ["config", "block", "stream", "async"])
def test_an_interrupted_run_is_logged_when_it_is_resumed(memory, way):
    agent = weatherman(middleware=[human()])

    def run(inputs):
        if way == "block":
            with memory.capture():
                agent.invoke(inputs, {"configurable": {"thread_id": "t1"}})
        elif way == "stream":  # as is usual: the stream is left at the interrupt
            for chunk in agent.stream(inputs, config(memory)):
                if "__interrupt__" in chunk:
                    break
        elif way == "async":
            asyncio.run(agent.ainvoke(inputs, config(memory)))
        else:
            agent.invoke(inputs, config(memory))

    run(ask())
    assert captured(memory) == []
    run(APPROVE)
    (trace,) = captured(memory)
    assert said(trace) == RAIN
    assert (trace.task, trace.outcome) == ("Weather?", "success")
    assert len(trace.metadata["earlier_runs"]) == 1


def test_two_users_threads_of_one_name_are_not_mixed(memory):
    """Each has a graph of their own, with a thread "t1"; the memory is one."""

    def of(user):
        return {**config(memory), "metadata": {"user_id": user}}

    ada, ben = (weatherman(middleware=[human()]) for _ in range(2))
    ada.invoke({"messages": [("user", "Weather for Ada?")]}, of("ada"))
    ben.invoke({"messages": [("user", "Weather for Ben?")]}, of("ben"))
    ada.invoke(APPROVE, of("ada"))
    ben.invoke(APPROVE, of("ben"))
    found = {trace.metadata["user_id"]: trace for trace in captured(memory)}
    for user, other in (("ada", "Ben"), ("ben", "Ada")):
        assert found[user].task == f"Weather for {user.capitalize()}?"
        assert len(found[user].metadata["earlier_runs"]) == 1
        assert other not in found[user].to_json()


def test_it_is_whole_after_a_restart_too(memory, embedder):
    agent = weatherman(middleware=[human()])
    agent.invoke(ask(), config(memory))
    path = memory.path
    memory.close()
    with KVLogMemory(path, embedder=embedder) as memory:
        agent.invoke(APPROVE, config(memory))
        (trace,) = captured(memory)
    assert said(trace) == RAIN
    assert trace.task == "Weather?"


def test_interrupted_twice_edited_and_rejected(memory):
    agent = weatherman(
        call("look", "c1", city="Oslo"),
        call("look", "c2", city="Bonn"),
        "Enough.",
        middleware=[human()],
    )
    agent.invoke(ask(), config(memory))
    edited = {"name": "look", "args": {"city": "Rome"}}
    agent.invoke(
        Command(resume={"decisions": [{"type": "edit", "edited_action": edited}]}), config(memory)
    )
    assert captured(memory) == []
    agent.invoke(
        Command(resume={"decisions": [{"type": "reject", "message": "No more."}]}), config(memory)
    )
    (trace,) = captured(memory)
    assert said(trace) == [
        "user: Weather?",
        "assistant: look(c1)",
        "tool: Rain in Rome",
        "assistant: look(c2)",
        "tool: User rejected the tool call for `look` with reason: No more.",
        "assistant: Enough.",
    ]
    assert len(trace.metadata["earlier_runs"]) == 2


def test_a_call_that_was_changed_is_logged_as_it_was_made(memory):
    class Elsewhere(AgentMiddleware):
        def after_model(self, state, runtime):
            answer = state["messages"][-1]
            changed = [{**call, "args": {"city": "Rome"}} for call in answer.tool_calls]
            return {"messages": [answer.model_copy(update={"tool_calls": changed})]}

    weatherman(middleware=[Elsewhere()]).invoke(ask(), config(memory))
    (trace,) = captured(memory)
    assert said(trace) == [*RAIN[:2], "tool: Rain in Rome", RAIN[3]]
    assert trace.messages[1].tool_calls[0].args == {"city": "Rome"}


@pytest.mark.parametrize("block", [False, True])
def test_breakpoints(memory, block):
    agent = weatherman(interrupt_before=["tools"])
    for inputs in (ask(), None):
        assert captured(memory) == []
        if block:
            with memory.capture():
                agent.invoke(inputs, {"configurable": {"thread_id": "t1"}})
        else:
            agent.invoke(inputs, config(memory))
    (trace,) = captured(memory)
    assert said(trace) == RAIN


def test_a_breakpoint_between_two_answers(memory):
    model = FakeChatModel("Draft.", "Final.")
    graph = StateGraph(MessagesState)
    for name in ("draft", "final"):
        graph.add_node(name, lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_edge(START, "draft")
    graph.add_edge("draft", "final")
    app = graph.compile(checkpointer=InMemorySaver(), interrupt_after=["draft"])
    app.invoke(ask(), config(memory))
    assert captured(memory) == []
    app.invoke(None, config(memory))
    (trace,) = captured(memory)
    assert said(trace) == ["user: Weather?", "assistant: Draft.", "assistant: Final."]


def test_interrupt_in_a_tool_of_a_graph(memory):
    @tool
    def confirm(what: str) -> str:
        """Ask the user."""
        return f"The user says {interrupt(what)}."

    agent = create_agent(
        FakeChatModel(call("confirm", what="Sure?"), "Done."),
        [confirm],
        checkpointer=InMemorySaver(),
    )
    graph = StateGraph(MessagesState)
    graph.add_node("agent", agent)
    graph.add_edge(START, "agent")
    app = graph.compile(checkpointer=InMemorySaver())
    app.invoke(ask("Do it"), config(memory))
    assert captured(memory) == []
    app.invoke(Command(resume="yes"), config(memory))
    (trace,) = captured(memory)
    assert said(trace) == [
        "user: Do it",
        "assistant: confirm(c1)",
        "tool: The user says yes.",
        "assistant: Done.",
    ]


def test_the_task_is_what_the_interrupted_run_was_given(memory):
    class State(TypedDict):
        question: str
        answer: str

    def check(state):
        return {"answer": interrupt("Is it right?")}

    def answer(state):
        return {"answer": FakeChatModel("Rain.").invoke(f"Think hard. {state['question']}").text}

    graph = StateGraph(State)
    graph.add_sequence([answer, check])
    graph.add_edge(START, "answer")
    app = graph.compile(checkpointer=InMemorySaver())
    app.invoke({"question": "Weather?"}, config(memory))
    app.invoke(Command(resume="yes"), config(memory))
    (trace,) = captured(memory)
    assert trace.task == "Weather?"
    assert said(trace) == ["user: Think hard. Weather?", "assistant: Rain."]


def test_a_new_question_instead_of_a_decision_goes_on(memory):
    agent = weatherman(call("look", city="Oslo"), "Never mind.", middleware=[human()])
    agent.invoke(ask(), config(memory))
    agent.invoke(ask("Forget it"), config(memory))
    (trace,) = captured(memory)
    assert trace.task == "Forget it"
    assert trace.last_response == "Never mind."
    assert said(trace)[:2] == RAIN[:2]


def test_threads_do_not_mix_and_are_bounded(memory, monkeypatch):
    monkeypatch.setattr(pending_runs, "_MAX_PENDING", 3)
    agents = {}
    for number in range(6):
        agents[number] = weatherman(middleware=[human()])
        agents[number].invoke(ask(f"Weather {number}?"), config(memory, f"t{number}"))
    assert len(pending_runs.pending_runs_of(memory)._pending) == 3
    assert captured(memory) == []
    for number in (5, 3):
        agents[number].invoke(APPROVE, config(memory, f"t{number}"))
    assert [trace.task for trace in captured(memory)] == ["Weather 5?", "Weather 3?"]
    assert all(len(trace.messages) == 4 for trace in captured(memory))


def test_an_error_after_an_interrupt_is_a_failure(memory):
    agent = weatherman(call("look", city="Oslo"), OSError("down"), middleware=[human()])
    agent.invoke(ask(), config(memory))
    with pytest.raises(OSError, match="down"):
        agent.invoke(APPROVE, config(memory))
    (trace,) = captured(memory)
    assert (trace.outcome, said(trace)) == ("failure", RAIN[:3])


def test_an_error_beside_an_interrupt_is_a_failure(memory):
    interrupted = threading.Event()

    class Watcher(BaseCallbackHandler):
        def on_chain_error(self, error, **kwargs):
            interrupted.set()

    def fail(state):
        FakeChatModel("Hm.").invoke(state["messages"])
        assert interrupted.wait(10)
        raise OSError("down")

    graph = StateGraph(MessagesState)
    graph.add_node("ask", lambda state: {"messages": [AIMessage(interrupt("Sure?"))]})
    graph.add_node("fail", fail)
    graph.add_edge(START, "ask")
    graph.add_edge(START, "fail")
    app = graph.compile(checkpointer=InMemorySaver())
    watched = config(memory)
    watched["callbacks"].append(Watcher())
    with pytest.raises(OSError, match="down"):
        app.invoke(ask(), watched)
    (trace,) = captured(memory)
    assert (trace.outcome, said(trace)) == ("failure", ["user: Weather?", "assistant: Hm."])


def test_the_run_that_was_interrupted_can_be_judged_by_its_own_id(memory):
    agent = weatherman(middleware=[human()])
    first = uuid4()
    agent.invoke(ask(), config(memory, run_id=first))
    agent.invoke(APPROVE, config(memory))
    memory.feedback(first, outcome="failure")
    (trace,) = captured(memory)
    assert trace.outcome == "failure"


def test_a_resumed_run_keeps_what_its_first_half_said(memory):
    agent = weatherman(middleware=[human()])
    agent.invoke(ask(), config(memory, metadata={"user_id": "u1", "first": 1}))
    agent.invoke(APPROVE, config(memory, metadata={"second": 2}))
    (trace,) = captured(memory)
    said_of_it = [trace.metadata[name] for name in ("user_id", "first", "second")]
    assert said_of_it == ["u1", 1, 2]
    assert len(trace.metadata["earlier_runs"]) == 1


@tool
def mail_of(person: str) -> str:
    """Look a mail address up."""
    return f"Her mail is {person.lower()}@example.com"


def test_what_was_redacted_is_in_no_log(memory):
    """Neither what the user said, nor what a tool returned, nor the answer."""
    rules = {"strategy": "redact", "apply_to_input": True, "apply_to_output": True}
    agent = create_agent(
        FakeChatModel(call("mail_of", "c1", person="Ann"), "Mail ann@example.com now."),
        [mail_of],
        middleware=[PIIMiddleware("email", **rules, apply_to_tool_results=True)],
    )
    answer = agent.invoke(ask("Write to bob@example.com please."), config(memory))
    assert answer["messages"][-1].text == "Mail [REDACTED_EMAIL] now."
    (trace,) = captured(memory)
    assert "example.com" not in trace.to_json()
    assert trace.task == "Write to [REDACTED_EMAIL] please."
    assert said(trace) == [
        "user: Write to [REDACTED_EMAIL] please.",
        "assistant: mail_of(c1)",
        "tool: Her mail is [REDACTED_EMAIL]",
        "assistant: Mail [REDACTED_EMAIL] now.",
    ]


def test_an_answer_that_a_later_step_replaced_is_the_one_that_was_given(memory):
    model = FakeChatModel("Your number is 123-45-6789.")

    def answer(state):
        return {"messages": [model.invoke(state["messages"])]}

    def guard(state):
        last = state["messages"][-1]
        return {"messages": [AIMessage("[blocked by policy]", id=last.id)]}

    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_node("guard", guard)
    graph.add_edge(START, "answer")
    graph.add_edge("answer", "guard")
    graph.compile().invoke(ask("My number?"), config(memory))
    (trace,) = captured(memory)
    assert said(trace) == ["user: My number?", "assistant: [blocked by policy]"]


def second_turn(memory, answer, question):
    """The log of a second turn of a graph of one node."""
    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    app = graph.compile(checkpointer=InMemorySaver())
    for asked in ("Q1?", question):
        app.invoke(ask(asked), config(memory))
    _, trace = sorted(captured(memory), key=lambda trace: trace.started_at)
    return trace


def test_a_call_before_the_agents_own_hides_no_earlier_turn(memory):
    """Such as for a summary, or for a search query."""
    model = FakeChatModel("A1.", "summary", "A2.")
    steps = iter([False, True])

    def answer(state):
        if next(steps):
            model.invoke([HumanMessage("Summarise: Q1? A1.")])
        return {"messages": [model.invoke(state["messages"])]}

    trace = second_turn(memory, answer, "Q2?")
    assert trace.task == "Q2?"
    assert said(trace) == [
        "user: Summarise: Q1? A1.",
        "assistant: summary",
        "user: Q2?",
        "assistant: A2.",
    ]
    assert [message.text for message in trace.earlier] == ["Q1?", "A1."]


def test_a_turn_that_no_model_answers_holds_what_is_new(memory):
    model = FakeChatModel("A1.")

    def answer(state):
        canned = state["messages"][-1].text == "Office hours?"
        said = AIMessage("Nine to five.") if canned else model.invoke(state["messages"])
        return {"messages": [said]}

    trace = second_turn(memory, answer, "Office hours?")
    assert said(trace) == ["user: Office hours?", "assistant: Nine to five."]
    assert [message.text for message in trace.earlier] == ["Q1?", "A1."]


def test_another_call_with_the_threads_id_does_not_go_on_with_it(memory):
    """A title that an application asks for while the agent waits for a human."""
    agent = weatherman(call("look", "c1", city="Oslo"), "It rains.", middleware=[human()])
    agent.invoke(ask(), config(memory))
    title = {**config(memory), "metadata": {"thread_id": "t1"}}
    FakeChatModel("Weather").invoke("Write a title.", title)
    (RunnableLambda(lambda text: text) | FakeChatModel("Rain")).invoke("Another title.", title)
    agent.invoke(APPROVE, config(memory))
    told = {trace.task: said(trace) for trace in captured(memory)}
    assert told["Write a title."] == ["user: Write a title.", "assistant: Weather"]
    assert told["Another title."] == ["user: Another title.", "assistant: Rain"]
    assert told["Weather?"] == [
        "user: Weather?",
        "assistant: look(c1)",
        "tool: Rain in Oslo",
        "assistant: It rains.",
    ]
