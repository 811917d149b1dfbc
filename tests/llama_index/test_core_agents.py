"""What core asserts of its agents, with LAGLLM in them, LAGMemory beside them and capture around:
tests/agent/workflow/test_single_agent_workflow, test_multi_agent_workflow, test_react_agent,
test_function_call, test_return_direct_e2e, test_thinking_delta, test_function_agent_reasoning_only,
test_agent_with_structured_output, test_code_act_agent, test_wait_for_event_replay, test_events."""

# No postponed annotations: tools are told by theirs what they are given.
import pytest
from llama_index.core.agent.workflow import (
    AgentInput,
    AgentStream,
    AgentStreamStructuredOutput,
    AgentWorkflow,
    CodeActAgent,
    FunctionAgent,
    ReActAgent,
    ToolCallResult,
)
from llama_index.core.agent.workflow.workflow_events import AgentWorkflowStartEvent
from llama_index.core.base.llms.types import ChatMessage, MessageRole, ThinkingBlock
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import (
    Context,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from llama_index.core.workflow.errors import WorkflowRuntimeError
from pydantic import BaseModel

from lag_integrations.llama_index import LAGMemory
from tests.conftest import qa
from tests.llama_index.recorder import added
from tests.llama_index.scripted import Prices, captured
from tests.puppet import calls

SUM = "Can you add 5 and 3?"
ADD = 'Thought: I need to add.\nAction: add\nAction Input: {"a": 5, "b": 3}\n'
EIGHT = "Thought: I know it.\nAnswer: The sum is 8"
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


# One agent


@BOTH
async def test_a_function_agent_answers(told, puppet, lag, memory, streaming):
    puppet.says("It is eight.")
    result, _ = await run(function(told, add, streaming=streaming), memory=lag)
    assert str(result) == "It is eight."
    assert outcome(memory) == ("success", "It is eight.")


@BOTH
async def test_a_tool_without_arguments_is_called(told, puppet, lag, memory, streaming):
    puppet.says(calls("anything"), "Done.")
    result, events = await run(function(told, anything, streaming=streaming), memory=lag)
    (made,) = [event for event in events if isinstance(event, ToolCallResult)]
    assert (made.tool_name, made.tool_kwargs, made.tool_output.content) == (
        "anything",
        {},
        "a result",
    )
    assert str(result) == "Done."
    (log,) = captured(memory)
    assert [step.role for step in log.messages] == ["user", "assistant", "tool", "assistant"]


@BOTH
async def test_several_calls_run_at_once_or_only_the_first(told, puppet, streaming):
    two = calls("add", a=1, b=2) + "\n" + calls("add", a=3, b=4)
    for several, results in ((True, ["3", "7"]), (False, ["3"])):
        puppet.says(two, "Done.")
        agent = function(told, add, streaming=streaming, allow_parallel_tool_calls=several)
        _, events = await run(agent)
        made = [event for event in events if isinstance(event, ToolCallResult)]
        assert sorted(event.tool_output.content for event in made) == results


@BOTH
async def test_results_are_read_in_the_order_of_their_calls(told, puppet, streaming):
    """Agents note them in the order in which tools end, and the template shows no ids."""
    prices = Prices(coffee="30", tea="20")
    puppet.says(calls("price", of="coffee") + "\n" + calls("price", of="tea"), "Done.")
    kind = prices.noted_by(FunctionAgent)
    _, events = await run(kind(llm=told, tools=[prices.price], streaming=streaming))
    results = [m.content for m in inputs(events)[-1] if m.role == MessageRole.TOOL]
    assert results == ["20", "30"]
    response = "<tool_response>\n{}\n</tool_response>".format
    assert 0 < puppet.prompts[1].index(response(30)) < puppet.prompts[1].index(response(20))


@BOTH
async def test_a_react_agent_answers(told, puppet, lag, memory, streaming):
    puppet.says(ADD, EIGHT)
    result, _ = await run(react(told, streaming=streaming), memory=lag)
    assert "8" in str(result)
    assert "Observation: 8" in puppet.prompts[1]
    assert outcome(memory)[0] == "success"
    assert "The sum is 8" in outcome(memory)[1]


@pytest.mark.parametrize(
    ("first", "told_off"),
    [
        ("", "FAILURE: Your previous response was empty"),
        ('Thought: I need to add.\nAction: add\n{"a": 5 "b": 3}\n', "Error while parsing"),
    ],
)
async def test_a_react_agent_tries_again(told, puppet, lag, memory, first, told_off):
    puppet.says(first, ADD, EIGHT)
    result, events = await run(react(told), memory=lag)
    assert "8" in str(result)
    assert any(told_off in (prompt[-1].content or "") for prompt in inputs(events))
    assert outcome(memory)[0] == "success"
    assert "The sum is 8" in outcome(memory)[1]


async def test_a_react_agent_answers_without_a_tool(told, puppet, lag, memory):
    puppet.says(EIGHT)
    result, _ = await run(react(told), memory=lag)
    assert "The sum is 8" in str(result)
    assert len(captured(memory)) == 1


def test_a_react_agents_prompt_can_be_changed(told):
    agent = react(told)
    assert isinstance(agent.get_prompts()["react_header"], PromptTemplate)
    agent.update_prompts({"react_header": PromptTemplate("Another {tool_desc}")})
    assert agent.get_prompts()["react_header"].template == "Another {tool_desc}"


# Agents that do not end


async def test_too_many_steps_are_an_error(told, puppet, lag, memory):
    puppet.says(calls("anything"))
    with pytest.raises(WorkflowRuntimeError, match="Max iterations of 3"):
        await run(function(told, anything), memory=lag, max_iterations=3)
    (log,) = captured(memory)
    assert (log.outcome, log.metadata["error"]) == ("failure", "WorkflowRuntimeError")


@pytest.mark.parametrize("where", ["agent", "run"])
async def test_too_many_steps_may_end_in_an_answer(told, puppet, lag, memory, where):
    puppet.says(calls("anything"), calls("anything"), "My final summary.")
    method = {"early_stopping_method": "generate"}
    agent = function(told, anything, **(method if where == "agent" else {}))
    settings = method if where == "run" else {}
    result, _ = await run(agent, memory=lag, max_iterations=2, **settings)
    assert str(result) == "My final summary."
    last = puppet.prompts[-1]
    assert "maximum number of iterations" in last
    # No call without its result, whether the version at hand shows what was found or not.
    assert last.count("<tool_response>") == last.count("<tool_call>\n{")
    assert outcome(memory) == ("success", "My final summary.")


async def test_a_context_that_goes_on_has_the_conversation(told, puppet, lag, memory):
    agent = function(told, anything)
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


# Several agents


async def test_an_agent_hands_over(told, puppet, lag, memory):
    retriever = FunctionAgent(
        name="retriever", description="Retrieves.", system_prompt="You retrieve.", llm=told
    )
    workflow = AgentWorkflow(agents=[react(told), retriever], root_agent="retriever")
    puppet.says(calls("handoff", to_agent="calculator", reason="Sums."), ADD, EIGHT)
    result, events = await run(workflow, memory=lag)
    assert "8" in str(result)
    names = {getattr(event, "current_agent_name", None) for event in events}
    assert {"retriever", "calculator"} <= names
    (log,) = captured(memory)
    assert (log.task, log.outcome) == (SUM, "success")
    assert "The sum is 8" in log.last_response


async def test_a_handoff_to_nobody_is_told(told, puppet, lag, memory):
    agents = [FunctionAgent(name=name, description="Does.", llm=told) for name in ("one", "two")]
    workflow = AgentWorkflow(agents=agents, root_agent="one")
    # It can name nobody else where it is held to the tool's schema, so it is asked for in text.
    puppet.says(calls("handoff", to_agent="nobody", reason="Because."), "I am stuck here.")
    result, events = await run(workflow, memory=lag)
    assert str(result) == "I am stuck here."
    assert "Agent nobody not found" in str(events)
    assert outcome(memory) == ("success", "I am stuck here.")


async def test_a_state_is_shown_once_and_changed(told, puppet, lag, memory):
    async def count(ctx: Context, word: str) -> str:
        """Count."""
        state = await ctx.store.get("state")
        state["counter"] += 1
        await ctx.store.set("state", state)
        return f"It is {state}."

    workflow = AgentWorkflow(
        agents=[function(told, count)],
        initial_state={"counter": 0},
        state_prompt="Current state: {state}. User message: {msg}",
    )
    puppet.says(calls("count", word="hello"), "Counted.")
    handler = workflow.run(user_msg="Go on.", memory=lag)
    prompts = inputs([event async for event in handler.stream_events()])
    await handler
    for prompt in prompts:
        said = [message.content for message in prompt if message.role == MessageRole.USER]
        assert [text.count("Current state:") for text in said] == [1]
    assert (await handler.ctx.store.get("state"))["counter"] == 1
    (log,) = captured(memory)
    assert log.task == "Go on."


async def test_an_agent_that_asks_a_human_goes_on_from_json(told, puppet, lag, memory):
    async def ask(ctx: Context) -> str:
        """Ask for the name."""
        answer = await ctx.wait_for_event(
            HumanResponseEvent, waiter_event=InputRequiredEvent(prefix="What is your name?")
        )
        return f"The name is {answer.response}."

    workflow = AgentWorkflow(agents=[function(told, ask)], root_agent="agent")
    puppet.says(calls("ask"), "Hello.")
    handler = workflow.run(user_msg="Greet me.", memory=lag)
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            state = handler.ctx.to_dict()
            await handler.cancel_run()
            break
    again = workflow.run(user_msg="Greet me.", ctx=Context.from_dict(workflow, state))
    again.ctx.send_event(HumanResponseEvent(response="John"))
    assert "Hello." in str(await again)
    assert "The name is John." in puppet.prompts[-1]
    resumed = captured(memory)[-1]
    assert (resumed.task, resumed.last_response) == ("Greet me.", "Hello.")


# Thoughts


THOUGHT = "<think>I need to think about this.</think>"


@pytest.mark.parametrize("kind", ["function", "react", "code"])
async def test_thoughts_are_streamed_apart(told, puppet, lag, memory, kind):
    answer = EIGHT if kind == "react" else "Hello there!"
    puppet.says(THOUGHT + answer)
    agents = {
        "function": lambda: function(told, add),
        "react": lambda: react(told),
        "code": lambda: CodeActAgent(llm=told, code_execute_fn=lambda code: "42"),
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


@BOTH
async def test_thoughts_without_an_answer(told, puppet, lag, memory, streaming):
    """Core takes the thoughts for the answer, in versions that do: they are where it looks."""
    puppet.says(THOUGHT)
    result, _ = await run(function(told, add, streaming=streaming), memory=lag)
    (thought,) = [b for b in result.response.blocks if isinstance(b, ThinkingBlock)]
    assert thought.content == "I need to think about this."
    assert (result.response.content or "") in ("", thought.content)


@BOTH
async def test_an_answer_is_not_replaced_by_its_thoughts(told, puppet, streaming):
    for text in (THOUGHT + "Paris.", "Paris."):
        puppet.says(text)
        result, _ = await run(function(told, add, streaming=streaming))
        assert result.response.content == "Paris."
    puppet.says("")
    result, _ = await run(function(told, add, streaming=streaming))
    assert (result.response.content or "") == ""


# Tools that return directly, and fail


@BOTH
async def test_a_tool_may_be_the_answer(told, puppet, lag, memory, streaming):
    tool = FunctionTool.from_defaults(anything, return_direct=True)
    puppet.says(calls("anything"), "Never said.")
    result, _ = await run(function(told, tool, streaming=streaming), memory=lag)
    assert str(result) == "a result"
    assert len(puppet.prompts) == 1
    assert outcome(memory) == ("success", "a result")


async def test_a_tool_that_fails_is_not_the_answer(told, puppet, lag, memory):
    failed = []

    def careful(again: bool = False) -> str:
        """Succeed at the second try."""
        if not again:
            failed.append(again)
            raise RuntimeError("Run it again.")
        return "It succeeded."

    tool = FunctionTool.from_defaults(careful, return_direct=True)
    puppet.says(calls("careful"), calls("careful", again=True))
    result, events = await run(function(told, tool), memory=lag)
    outputs = [event.tool_output for event in events if isinstance(event, ToolCallResult)]
    assert [output.is_error for output in outputs] == [True, False]
    assert isinstance(outputs[0].exception, RuntimeError)
    assert "Run it again." in puppet.prompts[1]
    assert str(result) == "It succeeded."
    assert outcome(memory) == ("success", "It succeeded.")


# Objects


class Sum(BaseModel):
    """A sum."""

    text: str
    value: int


def structured(messages) -> dict:
    return {"text": messages[-1].content, "value": 2}


async def astructured(messages) -> dict:
    return {"text": messages[-1].content, "value": 3}


@pytest.mark.parametrize("around", ["agent", "workflow", "tools"])
@pytest.mark.parametrize("how", ["class", "function", "async function"])
async def test_agents_give_objects(told, puppet, lag, memory, around, how):
    settings, value = {
        "class": ({"output_cls": Sum}, 8),
        "function": ({"structured_output_fn": structured}, 2),
        "async function": ({"structured_output_fn": astructured}, 3),
    }[how]
    puppet.says("It is eight.", calls("Sum", text="It is eight.", value=8))
    if around == "tools":
        agent = AgentWorkflow.from_tools_or_functions([add], llm=told, **settings)
    elif around == "workflow":
        agent = AgentWorkflow(agents=[function(told, add)], root_agent="agent", **settings)
    else:
        agent = function(told, add, **settings)
    result, events = await run(agent, memory=lag)
    assert any(isinstance(event, AgentStreamStructuredOutput) for event in events)
    assert result.get_pydantic_model(Sum) == Sum(text="It is eight.", value=value)
    assert str(result) == "It is eight."
    assert outcome(memory) == ("success", "It is eight.")


# Code, and workflows that begin again


async def test_code_is_run_and_its_result_read(told, puppet, lag, memory):
    ran = []
    puppet.says("I calculate.\n<execute>\nprint(2 + 2)\n</execute>", "It is 4.")

    def execute(code: str) -> str:
        ran.append(code.strip())
        return "4"

    result, events = await run(CodeActAgent(llm=told, code_execute_fn=execute), memory=lag)
    assert ran == ["print(2 + 2)"]
    assert [e.tool_name for e in events if isinstance(e, ToolCallResult)] == ["execute"]
    assert "Result of executing the code given:\n\n4" in puppet.prompts[1]
    assert str(result) == "It is 4."
    assert outcome(memory) == ("success", "It is 4.")


async def test_a_step_that_begins_again_is_captured_once(told, puppet, memory, no_worker):
    puppet.says("Inspected.")

    class Approved(Workflow):
        @step
        async def approve(self, ctx: Context, ev: StartEvent) -> StopEvent:
            entries = await ctx.store.get("entries", default=0)
            await ctx.store.set("entries", entries + 1)
            seen = await ctx.store.get("seen", default=None)
            if seen is None:
                seen = (await told.acomplete("Inspect the request.")).text
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


# Logs reach the model through them all


@pytest.mark.parametrize("kind", ["function", "react", "code", "workflow"])
async def test_each_step_of_an_agent_has_the_log(told, puppet, lag, memory, kind):
    (key,) = added(memory, qa("Could you add 5 and 3?", "The sum of 5 and 3 is 8."))
    memory.attach(puppet)
    steps = {
        "function": (calls("add", a=5, b=3), "It is 8."),
        "react": (ADD, EIGHT),
        "code": ("I see.\n<execute>\n5 + 3\n</execute>", "It is 8."),
        "workflow": (calls("add", a=5, b=3), "It is 8."),
    }
    agents = {
        "function": lambda: function(told, add),
        "react": lambda: react(told),
        "code": lambda: CodeActAgent(llm=told, code_execute_fn=lambda code: "8"),
        "workflow": lambda: AgentWorkflow(agents=[function(told, add)]),
    }
    puppet.says(*steps[kind])
    await run(agents[kind](), memory=lag)
    assert puppet.injected == [1, 1]
    assert captured(memory)[-1].helped_by == (key,)
