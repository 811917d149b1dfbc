"""Every Python snippet of README and docs runs, a page at a time, on the packaged model.

The snippets of a page share their names, as a reader's session would. What a page takes for granted
(the reader's own tools, say) is in `GIVEN`. ``<!-- not run: the reason -->`` before a snippet keeps
it from being run.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.runnables import RunnableLambda
from llama_index.core import Document, SummaryIndex
from llama_index.core.tools import FunctionTool

from lag_integrations import Engine, KVLogMemory, Trace
from lag_integrations.engine.requests import RequestBuilder
from lag_integrations.langchain import LAGChatModel
from lag_integrations.llama_index import LAGLLM
from tests.serving.conftest import serving
from tests.tutorials import loaded_before

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPET = re.compile(
    r"^(?:<!-- not run: (?P<reason>.+?) -->\n+)?```python\n(?P<code>.*?)^```$", re.M | re.S
)
FEW, FORMED = 6, 30
"""Tokens of an answer, where what it says does not matter; and of one that a grammar holds."""


def snippets(page: Path) -> list[tuple[int, str]]:
    """The snippets of a page that can be run, with the lines that they begin in."""
    text = page.read_text("utf-8")
    return [
        (text.count("\n", 0, match.start("code")), match["code"])
        for match in SNIPPET.finditer(text)
        if not match["reason"]
    ]


def run(page: Path, names: dict[str, Any]) -> None:
    async def all_of_them() -> None:
        for line, code in snippets(page):
            source = "\n" * line + code
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            done = eval(compile(source, str(page), "exec", flags), names)
            if inspect.isawaitable(done):
                await done

    try:
        asyncio.run(all_of_them())
    finally:
        for value in names.values():
            if isinstance(value, KVLogMemory):
                value.close()
            elif hasattr(value, "stop") and hasattr(value, "wait_for_judge"):
                value.stop()


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # "./memory"


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    """One loaded model under whatever name, and short answers."""
    build = RequestBuilder.build

    def shorter(*args: Any, max_new_tokens: int = FEW, grammar: Any = None, **settings: Any) -> Any:
        few = min(FORMED if grammar else FEW, max_new_tokens)
        return build(*args, max_new_tokens=few, grammar=grammar, **settings)

    monkeypatch.setattr(RequestBuilder, "build", shorter)
    monkeypatch.setattr(Engine, "load", classmethod(lambda *args, **settings: engine))


def for_langchain(engine: Engine) -> dict[str, Any]:
    model = LAGChatModel(model=engine, temperature=0)
    return {
        "LAGChatModel": LAGChatModel,
        "memory": KVLogMemory("./given"),
        "model": model,
        "agent": create_agent(model),
        "chain": RunnableLambda(lambda task: task["messages"]) | model,
        "task": {"messages": "How do we ship to Norway?"},
    }


def for_llama_index(engine: Engine) -> dict[str, Any]:
    def find_price(item: str) -> str:
        """Find the price of an item."""
        return "58 euros"

    class Workflow:
        async def run(self, task: str) -> Any:
            return await LAGLLM(engine).acomplete(task)

    trace = Trace.from_messages(
        [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello!"}]
    )
    with KVLogMemory("./memory") as memory:
        memory.add(trace)
    return {
        "index": SummaryIndex.from_documents([Document(text="Parcels go by the Bergen ferry.")]),
        "tools": [FunctionTool.from_defaults(find_price)],
        "run_id": trace.id,
        "workflow": Workflow(),
        "task": "How do we ship to Norway?",
    }


GIVEN = {
    "langchain": for_langchain,
    "llama_index": for_llama_index,
    "recall": lambda engine: {"KVLogMemory": KVLogMemory},
}


@pytest.mark.parametrize(("page", "answers"), [("README", 2), ("docs/index", 4)])
def test_the_first_pages_run_as_printed(
    page: str, answers: int, capsys: pytest.CaptureFixture[str], engine: Engine
) -> None:
    # README's snippets load their models themselves, as its readers do.
    with nullcontext() if page == "README" else loaded_before(engine):
        run(ROOT / f"{page}.md", {})

    printed = capsys.readouterr().out
    assert printed.count("marmalade") == answers
    assert re.search(r"('injected_tokens': |\['\w+'\] \[0\.\d+\] )[1-9]", printed)


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize(
    "page", [page.stem for page in PAGES if page.stem not in ("README", "index") and snippets(page)]
)
def test_snippets_run(page: str, engine: Engine, embedder: Any) -> None:
    with serving_at_its_port(engine, embedder) if page == "serving" else nullcontext():
        run(ROOT / f"docs/{page}.md", GIVEN.get(page, lambda _: {})(engine))


def serving_at_its_port(engine: Engine, embedder: Any) -> Any:
    return serving(
        engine,
        lambda namespace: KVLogMemory("./memory", namespace=namespace, embedder=embedder),
        port=8321,
        name="smol",
    )


def test_a_snippet_that_is_not_run_says_why() -> None:
    reasons = [
        match["reason"]
        for page in PAGES
        for match in SNIPPET.finditer(page.read_text("utf-8"))
        if match["reason"]
    ]

    assert len(reasons) <= 2
    assert all(len(reason) > 20 for reason in reasons)
