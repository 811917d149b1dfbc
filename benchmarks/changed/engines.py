"""Two ways to answer from documents: a query engine, and an agent with a tool that searches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol

from langchain.agents import create_agent
from langchain.agents.middleware import ModelCallLimitMiddleware
from langchain_core.documents import Document as Found
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools.retriever import create_retriever_tool
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import Document, VectorStoreIndex

from benchmarks.agent import LookUpFirst
from benchmarks.asked import figures, figures_of
from benchmarks.query_engine import Calls
from lag_integrations import KVLogMemory, packaged
from lag_integrations.engine.engine import Engine
from lag_integrations.engine.segment_placement import Placement
from lag_integrations.langchain import LAGChatModel
from lag_integrations.llama_index import LAGLLM, LAGQueryEngine
from lag_integrations.traces.trace import Trace

Texts = Iterable[tuple[str, str]]
"""Documents: names and texts."""

_DOCUMENTS = 2
_MOST_CALLS = 4
_MAX_TOKENS = 60
_SYSTEM = (
    "You answer questions about a company. Search its handbook first, then answer in one short "
    "sentence."
)


@dataclass(frozen=True)
class Memory:
    """A memory, and how it is used.

    Attributes:
        memory: Where runs are recalled from and put.
        as_text: Whether logs are read as text.
        by_step: Whether an agent is given single steps of them, before each call.
        judge: Tells of a question and an answer whether it is right.
    """

    memory: KVLogMemory
    as_text: bool = False
    by_step: bool = False
    judge: Callable[[str, str], bool] | None = None


@cache
def _calls() -> Calls:
    """Return the counter of calls: one for all engines, since a handler cannot be removed."""
    return Calls.added()


class Answers(Protocol):
    """Answers questions from documents."""

    def __call__(self, question: str, memory: Memory | None) -> tuple[str, dict[str, Any]]:
        """Return the answer, and the last attributes of `Answered`."""
        ...


class QueryEngine:
    """A ``RetrieverQueryEngine`` with its default prompt, over a ``VectorStoreIndex``.

    Args:
        engine: The model.
        texts: The documents.
        placement: Where logs stand; the default's place is after the documents.
    """

    def __init__(self, engine: Engine, texts: Texts, placement: Placement | None = None) -> None:
        from llama_index.embeddings.huggingface import HuggingFaceEmbedding

        index = VectorStoreIndex.from_documents(
            [Document(id_=name, text=text) for name, text in texts],
            embed_model=HuggingFaceEmbedding(str(packaged.embedder())),
        )
        llm = LAGLLM(engine, placement=placement, temperature=0, max_tokens=_MAX_TOKENS)
        self._engine = index.as_query_engine(llm=llm, similarity_top_k=_DOCUMENTS)
        self._calls = _calls()

    def __call__(self, question: str, memory: Memory | None) -> tuple[str, dict[str, Any]]:
        """Return the answer, and the last attributes of `Answered`."""
        asked = (
            self._engine
            if memory is None
            else LAGQueryEngine(self._engine, memory=memory.memory, as_text=memory.as_text)
        )
        self._calls.take()
        started = time.perf_counter()
        response = asked.query(question)
        seconds = time.perf_counter() - started
        made = self._calls.take()
        if memory is not None and memory.judge is not None:
            run_id = (response.metadata or {})["lag"]["run_id"]
            right = memory.judge(question, str(response))
            memory.memory.feedback(run_id, outcome="success" if right else "failure")
        read = sum(call["usage"]["prompt_tokens"] for call in made)
        return str(response), figures([call["lag"] for call in made], read, seconds)


class Agent:
    """An agent of ``create_agent`` with a retriever as its tool.

    Args:
        engine: The model.
        texts: The documents.
        must_look: Whether its first step must be a search.
    """

    def __init__(self, engine: Engine, texts: Texts, must_look: bool = False) -> None:
        from langchain_huggingface import HuggingFaceEmbeddings

        found = InMemoryVectorStore(HuggingFaceEmbeddings(model_name=str(packaged.embedder())))
        found.add_documents([Found(id=name, page_content=text) for name, text in texts])
        self._tool = create_retriever_tool(
            found.as_retriever(search_kwargs={"k": _DOCUMENTS}),
            "search_handbook",
            "Search the company's handbook.",
        )
        self._model = LAGChatModel(engine, temperature=0, max_tokens=_MAX_TOKENS)
        self._middleware: list[Any] = [
            ModelCallLimitMiddleware(run_limit=_MOST_CALLS, exit_behavior="end"),
            *([LookUpFirst()] if must_look else []),
        ]

    def __call__(self, question: str, memory: Memory | None) -> tuple[str, dict[str, Any]]:
        """Return the answer, and the last attributes of `Answered`."""
        middleware, callbacks = list(self._middleware), []
        if memory is not None:
            recall: Literal["run", "step"] = "step" if memory.by_step else "run"
            middleware.append(memory.memory.middleware(recall=recall, as_text=memory.as_text))
            callbacks.append(memory.memory.callback_handler(_judge(memory)))
        agent: Any = create_agent(
            self._model, [self._tool], system_prompt=_SYSTEM, middleware=middleware
        )
        started = time.perf_counter()
        state = agent.invoke({"messages": [HumanMessage(question)]}, {"callbacks": callbacks})
        said = [m for m in state["messages"] if isinstance(m, AIMessage) and m.usage_metadata]
        took = figures_of(said, started)
        if memory is not None and memory.as_text:
            took["logs"] = None
        for handler in callbacks:
            handler.wait_for_judge()
        return said[-1].text, took


def _judge(memory: Memory) -> Callable[[Trace], bool] | None:
    judge = memory.judge
    return judge and (lambda trace: judge(trace.task, trace.last_response))
