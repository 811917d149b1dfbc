"""A tiny model in a GGUF file, as llama.cpp writes one: layers in 4 bits, the embedding in 8."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from tests.store.model import TEMPLATE

LAYERS, HEADS, KEY_HEADS = 2, 4, 2
NO_TOKENS = [f"<|{number}|>" for number in range(15)]


def write_gguf(file: Path) -> LlamaForCausalLM:
    """Write a model of random weights; return it with the weights that are in the file."""
    tokens = [*NO_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt"]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        initializer_range=0.2,  # far above 0.02, so that not all tokens are as likely
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    kinds = [gguf.TokenType.CONTROL] * len(NO_TOKENS)
    writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * (len(tokens) - len(kinds)))
    writer.add_token_merges(["Ġ t"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, weight in model.named_parameters():
        kind = gguf.GGMLQuantizationType.Q4_1
        if weight.ndim == 1:
            kind = gguf.GGMLQuantizationType.F32
        elif "embed" in name:
            kind = gguf.GGMLQuantizationType.Q8_0
        packed = gguf.quantize(weight.numpy(), kind)
        weight.copy_(torch.from_numpy(gguf.dequantize(packed, kind)))
        if "q_proj" in name or "k_proj" in name:
            packed = _pairs_side_by_side(packed, HEADS if "q_proj" in name else KEY_HEADS)
        writer.add_tensor(names.get_name(name, (".weight",)), packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _pairs_side_by_side(rows: np.ndarray, heads: int) -> np.ndarray:
    """Order the rows of each head as llama.cpp's rope has them."""
    halves = rows.reshape(heads, 2, -1, rows.shape[-1])
    return halves.swapaxes(1, 2).reshape(rows.shape)
