"""Weights in 8 and 4 bits, and GGUF files."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from langchain_core.messages import HumanMessage
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from lag_integrations import Engine, KVLogMemory, packaged
from lag_integrations.engine.quantization import int4
from lag_integrations.engine.quantization import quantize as quantize_module
from lag_integrations.engine.quantization.int4 import Int4Linear, quantize_groups
from lag_integrations.engine.quantization.int8 import Int8Embedding, Int8Linear, quantize_rows
from lag_integrations.engine.quantization.int8_dot import Int8DotLinear, are_exact
from lag_integrations.engine.quantization.quantize import quantize
from lag_integrations.errors import FingerprintMismatchError, UnsupportedModelError
from lag_integrations.langchain import LAGChatModel
from lag_integrations.llama_index import LAGLLM
from lag_integrations.traces.message import Message
from tests.conftest import qa
from tests.engine.tiny_gguf import write_gguf
from tests.store.model import hash_embedder

ROWS = (1, 3, 16, 17, 96, 97, 300)
"""Below and above what each kernel is used for."""
SHAPES = ((64, 64), (32, 16), (96, 112), (64, 80), (128, 320))


def layer(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    torch.manual_seed(inputs + outputs)
    return nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)


def on_a_grid(inputs: int, outputs: int) -> nn.Linear:
    """A layer as it is dequantised from 4 bits; few groups use all of their 16 levels."""
    made = layer(inputs, outputs)
    codes = torch.randint(3, 13, (outputs, inputs // 32, 32)).float()
    scale = torch.rand(outputs, inputs // 32, 1) + 0.01
    made.weight.copy_((codes * scale - 7.3 * scale).flatten(1))
    return made


def distance(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).detach().norm() / expected.detach().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_the_weights(shape, dtype):
    linear = layer(*shape).to(dtype)
    for quantized, weight in (
        (Int8Linear(*quantize_rows(linear.weight), linear.bias), None),
        (Int4Linear(linear), Int4Linear(linear).dequantized(torch.float32)),
    ):
        if weight is None:
            weight = quantized.weight.float() * quantized.scale.float()[:, None]
        for rows in ROWS:
            inputs = torch.randn(2, rows, shape[0], dtype=dtype)
            expected = nn.functional.linear(inputs.float(), weight, linear.bias.float())
            outputs = quantized(inputs)
            assert outputs.dtype == dtype
            assert outputs.shape == (2, rows, shape[1])
            assert distance(outputs.float(), expected) < 6e-3


def test_weights_of_8_bits_are_near():
    linear = layer(256, 64)
    weight, scale = quantize_rows(linear.weight)
    assert distance(weight.float() * scale.float()[:, None], linear.weight) < 0.01


@pytest.mark.parametrize("shape", SHAPES)
def test_what_stands_on_4_bits_loses_nothing(shape):
    linear = on_a_grid(*shape)
    assert int4.is_lossless(linear.weight)
    assert distance(Int4Linear(linear).dequantized(torch.float32), linear.weight) < 0.01
    assert not int4.is_lossless(layer(*shape).weight)
    assert (
        distance(Int4Linear(layer(*shape)).dequantized(torch.float32), layer(*shape).weight) > 0.05
    )


@pytest.mark.parametrize("value", [0.0, 0.37])
def test_weights_that_are_all_alike_stay_so(value):
    linear = layer(64, 32, bias=False)
    linear.weight.fill_(value)
    for quantized in (Int4Linear(linear), Int8Linear(*quantize_rows(linear.weight), None)):
        assert torch.allclose(quantized(torch.ones(1, 64)), torch.tensor(value * 64), rtol=0.01)


@pytest.mark.parametrize("rows", [16, 32, 48, 64, 80, 112, 176])
def test_what_is_packed_can_be_unpacked(rows):
    linear = layer(64, rows)
    unpack = int4.unpacking()
    assert unpack is not None
    assert torch.equal(unpack(Int4Linear(linear).packed), quantize_groups(linear.weight)[0])


@pytest.mark.skipif(not are_exact(), reason="this processor adds up no products of bytes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_of_bytes_are_nearly_exact(shape, dtype):
    """Also of inputs with few that are far larger, as models have them."""
    linear = layer(*shape).to(dtype)
    weight, scale = quantize_rows(linear.weight)
    quantized = Int8DotLinear(weight, scale, linear.bias)
    for rows in ROWS:
        for largest in (1, 1000):
            inputs = torch.randn(2, rows, shape[0], dtype=dtype)
            inputs[..., 3] *= largest
            expected = nn.functional.linear(
                inputs.float(), weight.float() * scale.float()[:, None], linear.bias.float()
            )
            outputs = quantized(inputs)
            assert outputs.dtype == dtype
            assert distance(outputs.float(), expected) < (4e-4 if dtype is torch.float32 else 4e-3)
    assert torch.equal(quantized(torch.zeros(1, shape[0], dtype=dtype))[0], linear.bias)
    assert quantized(torch.full((1, shape[0]), torch.nan, dtype=dtype)).isnan().all()


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_the_identity_of_weights_does_not_depend_on_the_processor(scheme, monkeypatch):
    here, elsewhere = llama(), llama()
    if are_exact():
        monkeypatch.setattr(quantize_module, "pays", lambda layer: True)
    quantize(here, scheme)
    monkeypatch.setattr(quantize_module, "pays", lambda layer: False)
    quantize(elsewhere, scheme)
    theirs = elsewhere.state_dict()
    assert here.state_dict().keys() == theirs.keys()
    assert all(torch.equal(mine, theirs[name]) for name, mine in here.state_dict().items())
    elsewhere.model.layers[0].self_attn.q_proj = layer(64, 64, bias=False)
    quantize(elsewhere, scheme)
    name = "model.layers.0.self_attn.q_proj.identity"
    assert not torch.equal(elsewhere.state_dict()[name], theirs[name])


class Tower(nn.Module):
    """Two layers that are one, and one whose shape no kernel takes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = layer(64, 64)
        self.odd = layer(20, 7)


def llama(**settings) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            **settings,
        )
    ).eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scheme", ["int8", "int4", "auto"])
def test_a_model_is_quantized_with_its_embedding(scheme, tied):
    model = llama(tie_word_embeddings=tied)
    model.model.layers[0].self_attn.q_proj = on_a_grid(64, 64)
    model.model.layers[0].extra = Tower()
    tokens = torch.tensor([[5, 7, 11, 13]])
    expected = model.model.embed_tokens(tokens)
    quantize(model, scheme)
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    assert type(attention.q_proj) is (Int8Linear if scheme == "int8" else Int4Linear)
    assert type(mlp.up_proj) is (Int4Linear if scheme == "int4" else Int8Linear)
    assert type(model.lm_head) is Int8Linear
    embedding = model.get_input_embeddings()
    assert type(embedding) is Int8Embedding
    assert distance(embedding(tokens), expected) < 0.01
    assert model.model.layers[0].extra.first is model.model.layers[0].extra.second
    assert type(model.model.layers[0].extra.odd) is nn.Linear
    assert model(tokens).logits.shape == (1, 4, 128)


def test_a_model_whose_weights_are_elsewhere_says_so(caplog):
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=64, vocab_size=99))
    with caplog.at_level(logging.WARNING):
        quantize(gpt2, "int8")
    assert "GPT2LMHeadModel" in caplog.text


def test_what_cannot_be_quantized_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"'int3' is not known.*'int4'"):
        Engine.load(packaged.chat_model(), quantization="int3")
    with pytest.raises(UnsupportedModelError, match="on a CPU"):
        quantize(llama().to("meta"), "int8")
    with pytest.raises(UnsupportedModelError, match="on a CPU"):  # before anything is loaded
        Engine.load("no-such-model", device="cuda", quantization="int8")
    quantized = llama()
    quantized.hf_quantizer = object()
    with pytest.raises(UnsupportedModelError, match="quantised already"):
        quantize(quantized, "int8")
    with pytest.raises(ValueError, match="quantization= has no effect"):
        LAGChatModel(llama(), tokenizer=object(), quantization="int8")


@dataclass(frozen=True)
class Loaded:
    """A GGUF file as a chat model loads it, and a model of the same weights in fp32."""

    file: Path
    chat: LAGChatModel
    dense: Engine

    @property
    def packed(self) -> Engine:
        return self.chat.engine


@pytest.fixture(scope="module", params=["tiny", pytest.param("smollm2", marks=pytest.mark.slow)])
def loaded(request, tmp_path_factory) -> Loaded:
    """Loaded once, by the name of its file: SmolLM2 takes a while."""
    if request.param == "tiny":
        file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
        model = write_gguf(file)
    else:
        file, model = packaged.gguf("smollm2-135m"), None
    chat = LAGChatModel(model=str(file), max_tokens=24, temperature=0, quiet=True)
    if model is None:
        return Loaded(file, chat, request.getfixturevalue("engine"))
    return Loaded(file, chat, Engine(model, chat.engine.tokenizer))


def test_a_gguf_file_keeps_its_bits(loaded):
    """Both files hold their layers in 4 bits, their embedding in 8."""
    packed, dense = loaded.packed, loaded.dense
    kinds = {type(module) for module in packed.model.modules()}
    assert Int4Linear in kinds
    assert nn.Linear not in kinds
    assert packed.name == str(loaded.file)
    assert packed.fingerprint.id != dense.fingerprint.id
    weights = sum(buffer.numel() for buffer in packed.model.buffers())  # of one byte, nearly all
    assert weights < 0.3 * 4 * sum(weight.numel() for weight in dense.model.parameters())
    for packed_layer, dense_layer in zip(
        packed.model.model.layers, dense.model.model.layers, strict=True
    ):
        for name in ("q_proj", "o_proj"):
            weight = getattr(packed_layer.self_attn, name).dequantized(torch.float32)
            assert distance(weight, getattr(dense_layer.self_attn, name).weight) < 0.01


def test_a_gguf_file_answers_as_its_dense_weights_do(loaded):
    """The logits of a text: as near as bf16 is."""
    text = "The lighthouse of Velmora was built in 1874."
    ids = torch.tensor([loaded.dense.tokenizer(text)["input_ids"]])
    with torch.inference_mode():
        mine = loaded.packed.model(ids).logits.log_softmax(-1)
        theirs = loaded.dense.model(ids).logits.log_softmax(-1)
    assert float((theirs.exp() * (theirs - mine)).sum(-1).mean()) < 0.01
    # The comparison is worth something only where not all tokens are as likely.
    assert float((theirs.exp() * theirs).sum(-1).mean()) + math.log(theirs.shape[-1]) > 0.5


def test_frameworks_load_gguf_files_and_remember(loaded, tmp_path):
    with KVLogMemory(tmp_path / "m", embedder=hash_embedder, min_score=-1) as memory:
        chat = loaded.chat.model_copy(update={"memory": memory})
        memory.add(
            qa("Which code opens the vault in Lima?", "The code is 7741.", outcome="success")
        )
        memory.attach(chat.engine)
        memory.flush()
        answer = chat.invoke([HumanMessage("Which code opens the vault in Lima?")])
        assert answer.response_metadata["lag"]["injected_tokens"] > 0
        llm = LAGLLM(chat.engine, memory=memory, temperature=0, max_tokens=24)
        answers = answer.text, str(llm.complete("Which code opens the vault in Lima?"))
        if loaded.file.name != "tiny.gguf":  # whose random weights answer anything
            assert all("7741" in answer for answer in answers)


def test_settings_of_frameworks_reach_the_loader():
    path = str(packaged.chat_model())
    chat = LAGChatModel(model=path, quantization="int8", quiet=True)
    kinds = {type(module) for module in chat.engine.model.modules()}
    assert (Int8DotLinear in kinds) == are_exact()
    assert Int8Linear in kinds
    assert chat._identifying_params["quantization"] == "int8"
    assert LAGLLM(model=path, quantization="int8").quantization == "int8"


def test_a_gguf_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"model\.gguf.*GGUF file"):
        Engine.load(tmp_path / "model.gguf")
    (tmp_path / "model.gguf").write_bytes(b"no model")
    with pytest.raises(UnsupportedModelError, match=r"model\.gguf"):
        Engine.load(tmp_path / "model.gguf")


def test_a_segment_of_dense_weights_does_not_fit(loaded):
    segment = loaded.dense.encode(qa("Which code opens the vault?", "The code is 7741."))
    with pytest.raises(FingerprintMismatchError):
        loaded.packed.generate(
            [Message(role="user", content="Which code?")], [segment], max_new_tokens=2
        )
