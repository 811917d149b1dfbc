from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lag_integrations import Trace, packaged

if TYPE_CHECKING:  # the process that only hands tests to others needs none of it
    from sentence_transformers import SentenceTransformer
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

    from lag_integrations import Engine, KVLogMemory


@pytest.fixture(scope="session", autouse=True)
def _no_calibrations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Models of tests have the settings of a model that nobody has calibrated on this machine."""
    from lag_integrations.engine import log_settings

    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_settings, "cache_folder", lambda: folder)
        yield


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The real packaged model, shared: it takes seconds to load."""
    from lag_integrations import Engine

    return Engine.load(packaged.chat_model())


@pytest.fixture(scope="session")
def small() -> Engine:
    """Random weights on the real tokenizer: for tests in which words do not matter."""
    from transformers import AutoTokenizer

    from lag_integrations import Engine

    tokenizer = AutoTokenizer.from_pretrained(packaged.chat_model())
    return Engine(random_model(tokenizer, layers=3).eval(), tokenizer)


@pytest.fixture(scope="session")
def embedder() -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(packaged.embedder()))


@pytest.fixture
def memory(tmp_path: Path, embedder: SentenceTransformer) -> Iterator[KVLogMemory]:
    from lag_integrations import KVLogMemory

    with KVLogMemory(tmp_path / "memory", embedder=embedder) as memory:
        yield memory


@pytest.fixture
def no_worker(memory: KVLogMemory) -> None:
    """Embedding everything would only cost time; `flush` still does."""
    memory._worker.stop()


def random_model(tokenizer: PreTrainedTokenizerBase, layers: int = 1) -> LlamaForCausalLM:
    """Random weights for a real tokenizer: the worst writer there is."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.5,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def qa(question: str, answer: str, **fields: object) -> Trace:
    """A trace of one question and its answer."""
    return Trace.from_messages(
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        **fields,  # type: ignore[arg-type]
    )


def overwrite(file: Path, data: bytes) -> None:
    """Change a file in place, as no program that means well does: segments are read-only."""
    file.chmod(0o600)
    file.write_bytes(data)
