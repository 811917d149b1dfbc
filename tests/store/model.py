"""A tiny random model and a cheap embedder: for tests of the store, not of answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lag_integrations import Engine
from lag_integrations.store.embedder import Vectors

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
DIMENSION = 48


def tiny_engine(seed: int = 0) -> Engine:
    """Two layers, bytes for tokens, no files needed."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
    )
    vocabulary = {
        byte: index for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE)
    return Engine(LlamaForCausalLM(config), fast)


def hash_embedder(texts: Sequence[str]) -> Vectors:
    """Bags of hashed words, fp32 ``[texts, 48]``: alike texts have alike vectors."""
    vectors = np.zeros((len(texts), DIMENSION), dtype=np.float32)
    for row, text in enumerate(texts):
        for word in text.lower().split():
            digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
            vectors[row] += np.random.default_rng(int.from_bytes(digest, "big")).standard_normal(
                DIMENSION
            )
    return vectors
