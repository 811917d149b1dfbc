"""KVLogMemory: the memory that users open, with the forms that frameworks expect."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from typing_extensions import Unpack

from lag_integrations.chat.query import QueryOf
from lag_integrations.memory.memory import LogMemory
from lag_integrations.memory.safe_recall import WhereFunction
from lag_integrations.store.filters import Where
from lag_integrations.traces.trace import Outcome

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

    from lag_integrations.capture.judges import Judge
    from lag_integrations.capture.run_metadata import Metadata
    from lag_integrations.langchain.capture.handler import CaptureHandler
    from lag_integrations.langchain.key_value import LogKeyValueStore
    from lag_integrations.langchain.middleware import KVLogMiddleware
    from lag_integrations.langchain.retriever import LogRetriever
    from lag_integrations.langchain.store import LogBaseStore
    from lag_integrations.llama_index.capture.instrument import Capture
    from lag_integrations.llama_index.retriever import LogRetriever as LlamaIndexLogRetriever
    from lag_integrations.memory.lessons.teacher import Teacher


_LLAMA_INDEX_METHODS = {
    "aput",
    "put",
    "aget",
    "set",
    "aset",
    "aput_messages",
    "get_all",
    "name",
    "priority",
}
"""What LlamaIndex looks for in a memory, or in a block of one."""


class RecallSettings(TypedDict, total=False):
    """The settings that all forms of a memory share; see `LogRetriever`."""

    k: int | None
    min_score: float | None
    where: Where | WhereFunction | None


class RetrieverSettings(RecallSettings, total=False):
    """The settings of both frameworks' `LogRetriever`, which say what they mean."""

    outcomes: tuple[Outcome, ...] | None
    diversity: float | None
    newest_only: bool


class LangChainRetrieverSettings(RetrieverSettings, total=False):
    """The settings of LangChain's `LogRetriever`, and those of every LangChain retriever."""

    name: str | None
    tags: list[str] | None
    metadata: dict[str, Any] | None


class ToolSettings(RecallSettings, total=False):
    """The settings of `recall_tool`, which says what they mean."""

    name: str
    description: str
    max_chars: int


class MiddlewareSettings(RecallSettings, total=False):
    """The settings of `KVLogMiddleware`, which says what they mean."""

    recall: Literal["run", "step"]
    query: QueryOf | None
    as_text: bool
    max_chars: int


class KVLogMemory(LogMemory):
    """Remember what agents did as KV segments, and recall it for their next tasks.

    It is a folder of logs, and of the segments that models made of them. `add` records a trace at
    once; a worker thread embeds it, and encodes it with the attached model. What a model has not
    encoded yet is encoded when it is recalled. Any number of threads and processes may use a
    folder. A framework is imported when one of its forms (`middleware`, `as_retriever`, …) is
    called for.
    """

    if not TYPE_CHECKING:  # type checkers shall report unknown attributes

        def __getattr__(self, name: str) -> Any:
            message = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name in _LLAMA_INDEX_METHODS:
                message += (
                    "; pass LAGMemory(memory) to LlamaIndex's agents and chat engines as their "
                    "memory, or KVLogMemoryBlock(memory) as a block of one"
                )
            raise AttributeError(message)

    def callback_handler(
        self, judge: Judge | None = None, *, metadata: Metadata | None = None
    ) -> CaptureHandler:
        """Return a LangChain callback handler that captures whole runs into this memory.

        Pass it as ``config={"callbacks": [memory.callback_handler()]}``.

        Args:
            judge: Says in the background whether a run was a success; see `CaptureHandler`.
            metadata: Metadata of all its logs, such as ``{"project": "x"}``: texts, numbers,
                booleans, or lists of these. It wins over what the runs' own config or tags say.

        Raises:
            TraceError: The metadata has a key that is taken, or a value of another kind.
        """
        from lag_integrations.langchain.capture.handler import CaptureHandler

        return CaptureHandler(self, judge, metadata=metadata)

    @contextmanager
    def capture(
        self, judge: Judge | None = None, *, metadata: Metadata | None = None
    ) -> Iterator[CaptureHandler | Capture]:
        """Capture every run that begins in a ``with`` block, in coroutines, too.

        These are the runs of LangChain and of LlamaIndex, whichever is installed: of agents,
        chains, workflows, query and chat engines, and calls of bare models. Within an inner block
        only that one captures. The value of the block has ``wait_for_judge()``.

        Breakpoints of LangGraph (``interrupt_before``) are only seen by a `callback_handler` in the
        config. Threads are covered if they are started with a copy of the context, as LlamaIndex's
        and ``asyncio.to_thread`` are.

        Args:
            judge: Says in the background whether a run was a success; see `CaptureHandler`.
            metadata: Metadata of all its logs, such as ``{"project": "x"}``: texts, numbers,
                booleans, or lists of these. It wins over what the runs' own config or tags say.

        Raises:
            TraceError: The metadata has a key that is taken, or a value of another kind.
        """
        with ExitStack() as blocks:
            captures: list[CaptureHandler | Capture] = []
            if _is_installed("langchain_core"):
                from lag_integrations.langchain.capture.current import capture as of_langchain

                captures.append(blocks.enter_context(of_langchain(self, judge, metadata=metadata)))
            if _is_installed("llama_index.core"):
                from lag_integrations.llama_index.capture.instrument import (
                    capture as of_llama_index,
                )

                captures.append(
                    blocks.enter_context(of_llama_index(self, judge, metadata=metadata))
                )
            if not captures:
                raise ImportError(
                    "There is nothing to capture: install 'lag_integrations[langchain]' or "
                    "'lag_integrations[llama-index]'."
                )
            yield captures[0]

    def instrument(
        self, judge: Judge | None = None, *, metadata: Metadata | None = None
    ) -> Capture:
        """Capture every LlamaIndex run of this process that begins from now on, until ``stop()``.

        Where a `capture` block is entered, that one captures.

        Args:
            judge: Says in the background whether a run was a success; see `CaptureHandler`.
            metadata: Metadata of all its logs, such as ``{"project": "x"}``: texts, numbers,
                booleans, or lists of these. It wins over what the runs' own config or tags say.

        Raises:
            TraceError: The metadata has a key that is taken, or a value of another kind.
        """
        from lag_integrations.llama_index.capture.instrument import instrument

        return instrument(self, judge, metadata=metadata)

    def as_retriever(self, **settings: Unpack[LangChainRetrieverSettings]) -> LogRetriever:
        """Return a LangChain retriever whose documents are logs.

        Args:
            **settings: The fields of `LogRetriever`: ``k``, ``min_score``, ``where``, …

        Raises:
            ValueError: A setting is unknown or not valid.
            StoreError: The filter is malformed.
        """
        from lag_integrations.langchain.retriever import LogRetriever

        return LogRetriever(memory=self, **settings)

    def as_llama_index_retriever(
        self, **settings: Unpack[RetrieverSettings]
    ) -> LlamaIndexLogRetriever:
        """Return a LlamaIndex retriever whose nodes are logs (extra ``llama-index``).

        Args:
            **settings: Those of its `LogRetriever`: ``k``, ``min_score``, ``where``, …

        Raises:
            StoreError: The filter is malformed.
        """
        from lag_integrations.llama_index.retriever import LogRetriever

        return LogRetriever(self, **settings)

    def as_tool(self, **settings: Unpack[ToolSettings]) -> BaseTool:
        """Return a LangChain tool with which an agent recalls logs as text.

        Args:
            **settings: Those of `langchain.tool.recall_tool`: ``name``, ``description``, ``k``, …

        Raises:
            ValueError: A setting is unknown or not valid.
            StoreError: The filter is malformed.
        """
        from lag_integrations.langchain.tool import recall_tool

        return recall_tool(self, **settings)

    def as_store(self) -> LogBaseStore:
        """Return a LangGraph store whose items are logs of this memory (extra ``agents``)."""
        from lag_integrations.langchain import LogBaseStore

        return LogBaseStore(self)

    def as_key_value_store(self, name: str = "key_value") -> LogKeyValueStore:
        """Return a LangChain key-value store whose values are logs (extra ``agents``).

        Args:
            name: The namespace of its keys in `as_store`.
        """
        from lag_integrations.langchain import LogKeyValueStore

        return LogKeyValueStore(self, name)

    def middleware(self, **settings: Unpack[MiddlewareSettings]) -> KVLogMiddleware:
        """Return middleware that recalls for an agent of ``create_agent`` (extra ``agents``).

        Args:
            **settings: Those of `KVLogMiddleware`: ``recall``, ``k``, ``min_score``, ``where``, …

        Raises:
            ValueError: A setting is unknown or not valid.
            StoreError: The filter is malformed.
        """
        from lag_integrations.langchain import KVLogMiddleware

        return KVLogMiddleware(self, **settings)

    def _teacher(self, model: Any, max_new_tokens: int, cancelled: Callable[[], bool]) -> Teacher:
        # An object of a framework exists only where the framework is imported.
        of_langchain = sys.modules.get("langchain_core.language_models")
        of_llama_index = sys.modules.get("llama_index.core.llms")
        if of_langchain and isinstance(model, of_langchain.BaseChatModel):
            from lag_integrations.langchain.teacher import teacher as of_chat_model

            model = of_chat_model(model)
        elif of_llama_index and isinstance(model, of_llama_index.LLM):
            from lag_integrations.llama_index.teacher import teacher as of_llm

            model = of_llm(model)
        return super()._teacher(model, max_new_tokens, cancelled)


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False
