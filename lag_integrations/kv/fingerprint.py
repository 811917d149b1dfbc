"""The identity of everything that decides whether a segment fits a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lag_integrations.kv.position_scheme import Positions

# Settings that say how a model is run, not what it computes.
_VOLATILE = (
    "_name_or_path",
    "_model_name_or_path",
    "transformers_version",
    "architectures",
    "dtype",
    "torch_dtype",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
)
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Fingerprint:
    """Hashes of a model's parts; two models with equal `id` may share segments.

    Attributes:
        model: Class name, for messages.
        weights: Of all parameters and persistent buffers.
        config: Of the architecture settings, RoPE included.
        tokenizer: Of vocabulary, merges and special tokens.
        chat_template: Of the template that renders traces.
        rope: Of the position scheme that the probe learned.
        dtype: dtype of keys and values.
    """

    model: str
    weights: str
    config: str
    tokenizer: str
    chat_template: str
    rope: str
    dtype: str

    @property
    def id(self) -> str:
        """One hash over all parts, 64 hexadecimal digits."""
        return _hash(json.dumps(asdict(self), sort_keys=True))

    def to_json(self) -> str:
        """Return the parts as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    def differences(self, other: str) -> list[str]:
        """Return names of the parts in which a fingerprint, as JSON, differs from this one."""
        theirs = json.loads(other)
        return [
            field.name
            for field in fields(self)
            if theirs.get(field.name) != getattr(self, field.name)
        ]


def fingerprint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str,
    positions: Positions,
) -> Fingerprint:
    """Compute the fingerprint of a loaded model; reads every weight once."""
    config = model.config.to_dict()
    for key in _VOLATILE:
        config.pop(key, None)
    return Fingerprint(
        model=type(model).__name__,
        weights=_hash_weights(model),
        config=_hash(json.dumps(config, sort_keys=True, default=str)),
        tokenizer=_hash(_tokenizer_json(tokenizer)),
        chat_template=_hash(chat_template),
        rope=_hash("\n".join(positions.describe())),
        dtype=str(model.dtype).removeprefix("torch."),
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _hash_weights(model: PreTrainedModel) -> str:
    """Hash integer sums of blocks of each tensor's bits: exact on every device, at memory speed."""
    digest = hashlib.sha256()
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    tensors = (part for item in sorted(model.state_dict().items()) for part in _parts(*item))
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.numel() == 0 or tensor.device.type == "meta":
            continue
        bits = tensor.detach().contiguous().flatten().view(integers[tensor.element_size()])
        whole = len(bits) // _CHUNK * _CHUNK
        sums = [bits[:whole].view(-1, _CHUNK).sum(1, dtype=torch.int64)]
        sums.append(bits[whole:].sum(dtype=torch.int64)[None])
        digest.update(torch.cat(sums).cpu().numpy().tobytes())
        # Sums do not see order; a sample of single values does.
        step = max(1, len(bits) // 1024)
        digest.update(bits[::step].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _parts(name: str, tensor: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the plain tensors of one: quantised weights (torchao) are made of several."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    inner, _ = tensor.__tensor_flatten__()
    for part in inner:
        yield from _parts(f"{name}.{part}", getattr(tensor, part))


def _tokenizer_json(tokenizer: PreTrainedTokenizerBase) -> str:
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    # Padding and truncation are per-call state that using the tokenizer changes.
    settings.pop("padding", None)
    settings.pop("truncation", None)
    return json.dumps(settings, sort_keys=True)
