"""Sequences that share a forward pass get what each would get alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import PreTrainedModel

from lag_integrations.engine.attention import use_own_attention
from lag_integrations.kv.cache import new_cache, read_layers, shorten
from lag_integrations.kv.forward import (
    Unread,
    can_read_together,
    prefill,
    read_next,
    read_together,
    wait_until_computed,
)
from tests.kv.families import FAMILIES, Family, load, tokens

TAKE_TURNS = {
    "gpt_neox_japanese",
    "falcon",
    "falcon-new",
    "falcon-alibi",
    "bloom",
    "mpt",
    "deepseek_v2",
    "deepseek_v3",
    "youtu",
    "diffllama",
}
"""Families whose attention does not go through transformers' interface, or looks at keys first."""
OTHER_EXPERTS = {"granitemoe", "phimoe"}
"""Families of which rounding sends one of three tokens to other experts, so they take turns."""
IN_BFLOAT16 = {
    "llama",
    "llama-yarn",
    "ministral3",
    "qwen3_moe",
    "gemma2",
    "gemma3n",
    "gemma4",
    "phi",
    "phi3-longrope",
    "gpt_oss",
}
"""Families of every structure and position scheme: enough to see what rounding hides."""
LENGTHS = ((4, 1), (31, 1), (12, 5), (0, 9), (31, 1))
"""Of each sequence the tokens that were read, and those that come next."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(model: PreTrainedModel) -> list[Unread]:
    found = []
    for known, new in LENGTHS:
        ids, cache = tokens(known + new, seed=known), new_cache()
        if known:
            prefill(model, torch.tensor(ids[:known]), cache)
        found.append(Unread(ids[known:], cache, min(new, 3)))
    return found


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_together_as_alone(family: Family) -> None:
    model = load(family)
    with torch.no_grad():
        use_own_attention(model)
        able = can_read_together(model)
        assert able == (family.name not in TAKE_TURNS)
        if not able:
            return
        alone, together = rows(model), rows(model)
        expected = [read_next(model, row) for row in alone]
        found = read_together(model, together)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    for one, other in zip(together, alone, strict=True):
        for mine, theirs in zip(read_layers(one.cache), read_layers(other.cache), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


def round_by_rows(model: PreTrainedModel) -> None:
    """Round products otherwise from ten rows on, as kernels of GPUs do: by up to a bf16 step."""
    generator = torch.Generator().manual_seed(0)

    def rounded(_: object, __: object, output: torch.Tensor) -> torch.Tensor | None:
        if output.shape[:-1].numel() < 10:
            return None
        steps = (torch.rand(output.shape, generator=generator) - 0.5) * 2**-7
        return output * (1 + steps).to(output.dtype)

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(rounded)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_rounding_of_bfloat16_does_not_keep_sequences_apart(family: Family) -> None:
    model = load(family, torch.bfloat16)
    with torch.no_grad():
        use_own_attention(model)
        round_by_rows(model)
        able = can_read_together(model)
    assert able == (family.name not in TAKE_TURNS | OTHER_EXPERTS)


def positioned() -> Iterator[object]:
    """Families that read together and have positions to get wrong, each with a dtype."""
    for family in FAMILIES:
        if family.rotary and family.name not in TAKE_TURNS:
            yield pytest.param(family, torch.float32, id=f"{family}-fp32")
        if family.name in IN_BFLOAT16:
            yield pytest.param(family, torch.bfloat16, id=f"{family}-bf16")


@pytest.mark.parametrize(("family", "dtype"), positioned())
def test_other_positions_keep_sequences_apart(family: Family, dtype: torch.dtype) -> None:
    """As a model would have them that counts its positions itself."""
    model = load(family, dtype)

    def shift(_: object, args: tuple[object, ...], kwargs: dict[str, torch.Tensor]) -> object:
        if "position_ids" in kwargs:
            kwargs["position_ids"] = kwargs["position_ids"] + 1
        return args, kwargs

    with torch.no_grad():
        use_own_attention(model)
        model.register_forward_pre_hook(shift, with_kwargs=True)
        assert not can_read_together(model)


def test_a_gpu_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    for kind in ("cpu", "cuda:1"):
        wait_until_computed(torch.device(kind))
    assert waited == [torch.device("cuda:1")]


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_what_is_forgotten_leaves_no_trace(family: Family) -> None:
    model, ids = load(family), tokens(30, seed=3)
    with torch.no_grad():
        straight, detour = new_cache(), new_cache()
        prefill(model, torch.tensor(ids[:20]), straight)
        expected = prefill(model, torch.tensor(ids[20:]), straight)
        prefill(model, torch.tensor(ids[:20]), detour)
        prefill(model, torch.tensor(tokens(9, seed=8)), detour)
        shorten(detour, 20)
        found = prefill(model, torch.tensor(ids[20:]), detour)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
