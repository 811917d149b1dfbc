"""Models with random weights, made where they compute, and tokenizers whose tokens are words."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from lag_integrations.engine.engine import Engine
from lag_integrations.runtime.own_thread import in_own_thread

_MARKS = ("<unk>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|> {{ message.content }} <|end|> "
    "{% endfor %}{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
_NO_END = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
"""No token ends an answer: all are as long as asked for."""


@dataclass(frozen=True)
class Shape:
    """The shape of a model.

    Attributes:
        config: Arguments of `LlamaConfig`.
        dtype: Of the weights.
        timed: Whether it is timed, too, and not only checked.
    """

    config: dict[str, Any]
    dtype: torch.dtype
    timed: bool = True


_SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "tie_word_embeddings": True,
    "initializer_range": 576**-0.5,
}
_LLAMA = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": False,
    "initializer_range": 4096**-0.5,
}
_TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16384,
    "initializer_range": 64**-0.5,
}
SHAPES = {
    "smollm2-135m-fp32": Shape(_SMOLLM2, torch.float32, timed=False),
    "llama-3.1-8b": Shape(_LLAMA, torch.bfloat16),
    "smollm2-135m": Shape(_SMOLLM2, torch.bfloat16),
    "tiny": Shape(_TINY, torch.float32),
}
"""By name, in the order in which they are measured. ``tiny`` is for trying the script."""


def random_engine(shape: Shape, device: torch.device, prefix_cache_bytes: int) -> Engine:
    """Make an engine of a shape; its weights never were anywhere else than on its device.

    Args:
        shape: The shape.
        device: Where it computes.
        prefix_cache_bytes: See `Engine`.
    """
    config = LlamaConfig(**shape.config, **_NO_END)

    def make() -> PreTrainedModel:
        torch.manual_seed(0)
        with device:
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=shape.dtype)
        return model

    tokenizer = _tokenizer(config.vocab_size)
    return Engine(in_own_thread(make), tokenizer, prefix_cache_bytes=prefix_cache_bytes)


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer for which each token is a word."""
    words = [*_MARKS, *(f"w{number}" for number in range(vocabulary - len(_MARKS)))]
    ids = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=_MARKS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=_MARKS[0],
        extra_special_tokens=list(_MARKS[1:]),
        chat_template=_TEMPLATE,
    )


def text_of(engine: Engine, tokens: int, seed: int | str) -> str:
    """Return words by chance, each of them a token."""
    chance = random.Random(seed)
    most = engine.vocabulary - len(_MARKS)
    return " ".join(f"w{chance.randrange(most)}" for _ in range(tokens))


def kv_bytes(shape: Shape) -> int:
    """Return the bytes of keys and values that a token takes."""
    config = LlamaConfig(**shape.config)
    heads = 2 * config.num_hidden_layers * config.num_key_value_heads
    return int(heads * config.head_dim * shape.dtype.itemsize)
