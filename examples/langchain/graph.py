"""A graph with threads: each turn is one log, and other threads benefit.

You learn how runs of a LangGraph with a checkpointer are captured: a turn of a thread is logged
without the turns before it, a run that waits for a human is logged once, when it was resumed, and
a new thread recalls what another one found. Plus the memory as a LangGraph store.

Runs on the packaged 135M model, without a network: ``python examples/langchain/graph.py``.
"""

import tempfile

from langchain_core.messages import SystemMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, interrupt
from rich.console import Console

from lag_integrations import KVLogMemory, packaged
from lag_integrations.langchain import LAGChatModel

console = Console()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, KVLogMemory(folder, k=1) as memory:
        model = LAGChatModel(
            model=packaged.chat_model(), memory=memory, temperature=0, max_tokens=24
        )

        def answer(state: MessagesState) -> dict:
            system = SystemMessage("Answer in one short sentence.")
            return {"messages": [model.invoke([system, *state["messages"]])]}

        def review(state: MessagesState) -> dict:
            if "password" in state["messages"][-2].text:
                interrupt("May this answer go out?")
            return {}

        graph = StateGraph(MessagesState)
        graph.add_node("answer", answer)
        graph.add_node("review", review)
        graph.add_edge(START, "answer")
        graph.add_edge("answer", "review")
        graph.add_edge("review", END)
        app = graph.compile(checkpointer=InMemorySaver())
        handler = memory.callback_handler()

        def config(thread: str) -> RunnableConfig:
            return {"configurable": {"thread_id": thread}, "callbacks": [handler]}

        def say(thread: str, text: str) -> dict:
            state = app.invoke({"messages": [("human", text)]}, config(thread))
            console.print(f"[bold]{text}[/]\n  {state['messages'][-1].text}")
            return state

        console.rule("1. Two turns of one thread")
        lighthouse = "The Velmora lighthouse was built in 1874 by Ada Krenn. It is painted green."
        archive = "The night archive opens at ten. Its password is marmalade."
        say("monday", f"{lighthouse}\n\nIn what year was the Velmora lighthouse built?")
        state = say("monday", f"{archive}\n\nWhat is the password of the night archive?")

        console.rule("2. The second turn waits for a human")
        console.print(f"Waiting: {state['__interrupt__'][0].value}")
        console.print(f"Logs so far: {memory.store.ledger.count()}")
        app.invoke(Command(resume="yes"), config("monday"))
        console.print(f"Logs after it was resumed: {memory.store.ledger.count()}")
        memory.flush()
        for log in memory.recall("lighthouse or archive", k=5, min_score=-1):
            roles = [step.role for step in log.trace.messages]
            console.print(f"  {roles}: {log.trace.last_response}")

        console.rule("3. Another thread knows it")
        state = say("tuesday", "When was the lighthouse of Velmora built?")
        console.print(state["messages"][-1].response_metadata["lag"]["log_ids"])

        console.rule("4. The memory as a store")
        # For compile(store=…), create_agent(store=…) and tools with InjectedStore.
        store = memory.as_store()
        store.put(("users", "ada"), "drink", {"text": "Ada drinks her tea with lemon."})
        found = store.search(("users",), query="How does Ada like her tea?", limit=1)
        console.print(found[0].key, found[0].value)
        model.close()


if __name__ == "__main__":
    main()
