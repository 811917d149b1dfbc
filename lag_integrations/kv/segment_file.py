"""Segments to and from files of plain safetensors.

A file is what the library writes; any reader of that format opens it. The metadata, all of them
strings:

- ``format`` is ``lag-segment``, ``version`` is ``4``;
- ``log_id``, ``fingerprint``, ``selection``, ``codec``: the `SegmentKey`;
- ``dtype``: the model's dtype (``float32``, ``bfloat16``, ``float16``), which decoding gives back;
- ``groups``: the number of layer groups;
- ``info``: facts about the making of the segment, as a JSON object of strings;
- ``background``: how many of the tokens stand before the last response (`Segment.background`).

The tensors are ``token_ids`` (int64, ``[tokens]``) and, for each layer group g from 0, what the
codec stores of its pair, as ``slots.g.0…`` and ``slots.g.1…`` (see `lag_integrations.kv.codecs`).
The text of the trace is not in the file, though its token ids are.

Whoever keeps a file remembers its `sha256_hex`, and gives it to `load_segment`: what is damaged, or
was written by somebody else, has another one. Files of earlier versions have a ``checksum`` in
their metadata, which is not looked at.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from math import prod

import torch
from safetensors.torch import save

from lag_integrations.errors import (
    EncodingError,
    FingerprintMismatchError,
    SegmentCorruptedError,
)
from lag_integrations.kv.cache import LayerKV
from lag_integrations.kv.codecs import Codec, codec
from lag_integrations.kv.mapped_file import Data, sha256_hex
from lag_integrations.kv.segment import Segment, SegmentKey

FORMAT = "lag-segment"
VERSION = "4"

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STORED = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I64": torch.int64,
}
"""What codecs write, by the names of safetensors."""


def dump_segment(segment: Segment, key: SegmentKey) -> bytes:
    """Return a segment as the content of a file.

    Args:
        segment: The segment.
        key: What it is the segment of.

    Raises:
        FingerprintMismatchError: The key is for another model than the one that made the segment.
        EncodingError: The codec cannot hold the segment's values.
        StoreError: There is no such codec, or a package that it needs is not installed.
    """
    _require_model(segment.fingerprint, key)
    used = codec(key.codec)
    dtypes = {str(slot.dtype).removeprefix("torch.") for pair in segment.slots for slot in pair}
    if len(dtypes) != 1 or not dtypes <= _DTYPES.keys():
        raise EncodingError(
            f"The keys and values of a segment must be of one dtype, {', '.join(_DTYPES)}; these "
            f"are {' and '.join(sorted(dtypes))}. Load the model in one of them."
        )
    tensors = {"token_ids": segment.token_ids}
    for group, pair in enumerate(segment.slots):
        for name, tensor in used.encode(pair).items():
            tensors[f"slots.{group}.{name}"] = tensor.detach().cpu().contiguous()
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        **asdict(key),
        "dtype": dtypes.pop(),
        "groups": str(len(segment.slots)),
        "info": json.dumps(segment.info, sort_keys=True),
        "background": str(segment.background),
    }
    data: bytes = save(tensors, metadata)
    return data


def load_segment(data: Data, key: SegmentKey, sha256: str) -> Segment:
    """Return the segment in the content of a file, on the CPU.

    Args:
        data: The content. Where it can be written to, the segment's tensors are views of it: it
            must not be changed any more.
        key: What it must be the segment of.
        sha256: The `sha256_hex` that it must have.

    Raises:
        SegmentCorruptedError: It is damaged, not a segment, written by somebody else, or that of
            another log, selection or codec.
        FingerprintMismatchError: Another model wrote it.
        StoreError: The key has no codec of this installation; says nothing about the data.
    """
    used = codec(key.codec)
    # Nothing is interpreted, not even the length of the header, before the hash is right.
    if sha256_hex(data) != sha256:
        raise SegmentCorruptedError(
            f"The segment of log {key.log_id} is damaged, or was written by somebody else: its "
            "SHA-256 is wrong. Encode its trace again."
        )
    try:
        view = memoryview(bytearray(data) if isinstance(data, bytes) else data)
        end = 8 + int.from_bytes(view[:8], "little")
        header, payload = json.loads(bytes(view[8:end])), view[end:]
        metadata = header.pop("__metadata__")
        _require_key(metadata, key)
        tensors = {name: _tensor(payload, **about) for name, about in header.items()}
        return _decode(tensors, metadata, used)
    except (FingerprintMismatchError, SegmentCorruptedError):
        raise
    except Exception as error:  # of any kind: a right hash makes no sense of bytes
        raise SegmentCorruptedError(
            f"The segment of log {key.log_id} is whole, but cannot be understood "
            f"({type(error).__name__}: {error}). Encode its trace again."
        ) from error


def _tensor(
    payload: memoryview, dtype: str, shape: list[int], data_offsets: tuple[int, int]
) -> torch.Tensor:
    """Return one tensor of a payload, without a copy (the library would make one)."""
    kind, (begin, end) = _STORED[dtype], data_offsets
    if not all(type(value) is int and value >= 0 for value in (begin, end, *shape)):
        raise ValueError("a tensor has no proper shape or place")
    number = prod(shape)
    if end - begin != number * kind.itemsize or end > len(payload):
        raise ValueError("a tensor is not where its header says")
    if not number:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(payload, dtype=kind, count=number, offset=begin).view(shape)


def _require_model(fingerprint: str, key: SegmentKey) -> None:
    if fingerprint != key.fingerprint:
        raise FingerprintMismatchError(
            f"The segment of log {key.log_id} was encoded by model {fingerprint[:12]}, not by "
            f"{key.fingerprint[:12]}; encode its trace again with the model in use."
        )


def _require_key(metadata: dict[str, str], key: SegmentKey) -> None:
    """Refuse another format, then another model, then another log, selection or codec."""
    if metadata["format"] != FORMAT or metadata["version"] != VERSION:
        raise SegmentCorruptedError(
            f"The segment of log {key.log_id} is not a {FORMAT} of version {VERSION}. Encode its "
            "trace again."
        )
    _require_model(metadata["fingerprint"], key)
    for field, expected in asdict(key).items():
        if metadata[field] != expected:
            raise SegmentCorruptedError(
                f"The file for log {key.log_id} holds a segment of another {field}: "
                f"{metadata[field]!r}, not {expected!r}. Encode its trace again."
            )


def _decode(tensors: dict[str, torch.Tensor], metadata: dict[str, str], used: Codec) -> Segment:
    dtype = _DTYPES[metadata["dtype"]]
    token_ids = tensors["token_ids"].clone()  # a view would keep all of the file in memory
    slots: list[LayerKV] = []
    for group in range(int(metadata["groups"])):
        prefix = f"slots.{group}."
        stored = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        pair = used.decode(stored, dtype)
        for slot in pair:
            if slot.dtype != dtype or slot.dim() != 4 or slot.shape[2:3] != token_ids.shape:
                raise ValueError(f"group {group} does not fit its tokens")
        slots.append(pair)
    info, background = json.loads(metadata["info"]), int(metadata["background"])
    return Segment(token_ids, tuple(slots), metadata["fingerprint"], info, background)
