from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Iterator
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from lag_integrations import Engine, KVLogMemory, Trace, packaged


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The real packaged model, shared: it takes seconds to load."""
    return Engine.load(packaged.chat_model())


@pytest.fixture(scope="session")
def embedder() -> SentenceTransformer:
    return SentenceTransformer(str(packaged.embedder()))


@pytest.fixture
def memory(tmp_path: Path, embedder: SentenceTransformer) -> Iterator[KVLogMemory]:
    with KVLogMemory(tmp_path / "memory", embedder=embedder) as memory:
        yield memory


@pytest.fixture
def no_worker(memory: KVLogMemory) -> None:
    """Embedding everything would only cost time; `flush` still does."""
    memory._worker.stop()


def qa(question: str, answer: str, **fields: object) -> Trace:
    """A trace of one question and its answer."""
    return Trace.from_messages(
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        **fields,  # type: ignore[arg-type]
    )
