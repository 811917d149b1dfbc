"""What LlamaIndex's agents and workflows expect of `LAGLLM`, `LAGMemory` and capture."""

# No postponed annotations: tools are described by theirs.
import pytest
from llama_index.core.agent.workflow import (
    AgentInput,
    AgentStream,
    AgentStreamStructuredOutput,
    AgentWorkflow,
    CodeActAgent,
    FunctionAgent,
    ReActAgent,
)
from llama_index.core.agent.workflow.workflow_events import AgentWorkflowStartEvent
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.workflow import (
    Context,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from pydantic import BaseModel

from lag_integrations.llama_index import LAGMemory
from tests.conftest import qa
from tests.fake_engine import calls
from tests.helpers import added, captured
from tests.llama_index.fake_llm import Prices

ADD = 'Thought: I need to add.\nAction: add\nAction Input: {"a": 5, "b": 3}\n'


EIGHT = "Thought: I know it.\nAnswer: The sum is 8"


SUM = "Can you add 5 and 3?"


BOTH = pytest.mark.parametrize("streaming", [True, False])


@pytest.fixture
def lag(memory, no_worker):
    return LAGMemory(memory)


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def anything() -> str:
    """Do anything."""
    return "a result"


def react(llm, **settings):
    return ReActAgent(name="calculator", description="Adds.", tools=[add], llm=llm, **settings)


def function(llm, *tools, **settings):
    return FunctionAgent(name="agent", description="Does.", tools=list(tools), llm=llm, **settings)


async def run(agent, question=SUM, **settings):
    """The result of an agent, and its events."""
    handler = agent.run(user_msg=question, **settings)
    events = [event async for event in handler.stream_events()]
    return await handler, events


def inputs(events):
    """The prompts of an agent's steps."""
    return [event.input for event in events if isinstance(event, AgentInput)]


def outcome(memory):
    (log,) = captured(memory)
    return log.outcome, log.last_response


@pytest.mark.parametrize("kind", ["function", "react", "code", "workflow"])
async def test_each_step_of_an_agent_has_the_log(puppet_llm, puppet, lag, memory, kind):
    (key,) = added(memory, qa("Could you add 5 and 3?", "The sum of 5 and 3 is 8."))
    memory.attach(puppet)
    steps = {
        "function": (calls("add", a=5, b=3), "It is 8."),
        "react": (ADD, EIGHT),
        "code": ("I see.\n<execute>\n5 + 3\n</execute>", "It is 8."),
        "workflow": (calls("add", a=5, b=3), "It is 8."),
    }
    agents = {
        "function": lambda: function(puppet_llm, add),
        "react": lambda: react(puppet_llm),
        "code": lambda: CodeActAgent(llm=puppet_llm, code_execute_fn=lambda code: "8"),
        "workflow": lambda: AgentWorkflow(agents=[function(puppet_llm, add)]),
    }
    puppet.says(*steps[kind])
    await run(agents[kind](), memory=lag)
    assert puppet.injected == [1, 1]
    assert captured(memory)[-1].helped_by == (key,)


@BOTH
async def test_results_are_read_in_the_order_of_their_calls(puppet_llm, puppet, streaming):
    """Agents note them in the order in which tools end, and the template shows no ids."""
    prices = Prices(coffee="30", tea="20")
    puppet.says(calls("price", of="coffee") + "\n" + calls("price", of="tea"), "Done.")
    kind = prices.noted_by(FunctionAgent)
    _, events = await run(kind(llm=puppet_llm, tools=[prices.price], streaming=streaming))
    results = [m.content for m in inputs(events)[-1] if m.role == MessageRole.TOOL]
    assert results == ["20", "30"]
    response = "<tool_response>\n{}\n</tool_response>".format
    assert 0 < puppet.prompts[1].index(response(30)) < puppet.prompts[1].index(response(20))


async def test_a_context_that_goes_on_has_the_conversation(puppet_llm, puppet, lag, memory):
    agent = function(puppet_llm, anything)
    context = Context(agent)
    puppet.says(calls("anything"), "One.")
    await run(agent, "First?", ctx=context, memory=lag)
    puppet.says("Two.")
    await run(agent, "Second?", ctx=context)
    assert [text in puppet.prompts[0] for text in ("First?", "One.", "a result", "Second?")] == [
        True
    ] * 4
    assert [log.task for log in captured(memory)] == ["First?", "Second?"]
    assert [log.last_response for log in captured(memory)] == ["One.", "Two."]
    assert {log.metadata["thread_id"] for log in captured(memory)} == {lag.session_id}


THOUGHT = "<think>I need to think about this.</think>"


@pytest.mark.parametrize("kind", ["function", "react", "code"])
async def test_thoughts_are_streamed_apart(puppet_llm, puppet, lag, memory, kind):
    answer = EIGHT if kind == "react" else "Hello there!"
    puppet.says(THOUGHT + answer)
    agents = {
        "function": lambda: function(puppet_llm, add),
        "react": lambda: react(puppet_llm),
        "code": lambda: CodeActAgent(llm=puppet_llm, code_execute_fn=lambda code: "42"),
    }
    result, events = await run(agents[kind](), memory=lag)
    streamed = [event for event in events if isinstance(event, AgentStream)]
    thoughts = [event.thinking_delta for event in streamed if event.thinking_delta]
    assert "".join(thoughts) == "I need to think about this."
    assert len(thoughts) > 1
    said = [event for event in streamed if not event.thinking_delta]
    assert "".join(event.delta for event in said) == answer
    assert {event.thinking_delta for event in said} == {None}
    assert "think about this" not in str(result)
    assert outcome(memory)[0] == "success"
    assert "think about this" not in outcome(memory)[1]


class Sum(BaseModel):
    """A sum."""

    text: str
    value: int


async def test_an_agent_gives_an_object(puppet_llm, puppet, lag, memory):
    puppet.says("It is eight.", calls("Sum", text="It is eight.", value=8))
    agent = function(puppet_llm, add, output_cls=Sum)
    result, events = await run(agent, memory=lag)
    assert any(isinstance(event, AgentStreamStructuredOutput) for event in events)
    assert result.get_pydantic_model(Sum) == Sum(text="It is eight.", value=8)
    assert str(result) == "It is eight."
    assert outcome(memory) == ("success", "It is eight.")


async def test_a_step_that_begins_again_is_captured_once(puppet_llm, puppet, memory, no_worker):
    puppet.says("Inspected.")

    class Approved(Workflow):
        @step
        async def approve(self, ctx: Context, ev: StartEvent) -> StopEvent:
            entries = await ctx.store.get("entries", default=0)
            await ctx.store.set("entries", entries + 1)
            seen = await ctx.store.get("seen", default=None)
            if seen is None:
                seen = (await puppet_llm.acomplete("Inspect the request.")).text
                await ctx.store.set("seen", seen)
            answer = await ctx.wait_for_event(
                HumanResponseEvent, waiter_event=InputRequiredEvent(prefix="Approve?")
            )
            return StopEvent(result=(seen, answer.response))

    with memory.capture():
        handler = Approved().run()
        async for event in handler.stream_events():
            if isinstance(event, InputRequiredEvent):
                handler.ctx.send_event(HumanResponseEvent(response="yes"))
        assert await handler == ("Inspected.", "yes")
    assert await handler.ctx.store.get("entries") == 2
    assert len(puppet.prompts) == 1
    (log,) = captured(memory)
    assert (log.outcome, log.last_response) == ("success", "Inspected.")


async def test_the_event_that_starts_a_run_is_dumped_without_the_memory(lag):
    event = AgentWorkflowStartEvent(
        user_msg="Hi.",
        chat_history=[{"role": "user", "content": "Hi."}],
        max_iterations=10,
        memory=lag,
    )
    assert event.chat_history == [ChatMessage(role="user", content="Hi.")]
    assert event.get("memory") is lag
    assert "memory" not in event.model_dump()
