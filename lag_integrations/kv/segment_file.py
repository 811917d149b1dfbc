"""Segments to and from files: safetensors with a checksum over every byte.

A file is a plain safetensors file; any reader of that format opens it. Byte by byte:

====================  ==========================================================================
0 … 7                 Length n of the header, unsigned, little-endian.
8 … 7 + n             The header: JSON (ASCII), filled up with spaces to a multiple of 8 bytes.
8 + n … end           The tensors, each from where to where is in the header. All numbers are
                      little-endian.
====================  ==========================================================================

The header begins ``{"__metadata__":{"checksum":"``, so that the checksum's 64 digits are always the
bytes 37 … 100. It is the HMAC-SHA256, in lower-case hexadecimal, of the whole file with ``0`` in
the place of these digits, under the secret of the store that wrote it. The other metadata, in this
order and all of them strings:

- ``format`` is ``lag-segment``, ``version`` is ``4``;
- ``log_id``, ``fingerprint``, ``selection``, ``codec``: the `SegmentKey`;
- ``dtype``: the model's dtype (``float32``, ``bfloat16``, ``float16``), which decoding gives back;
- ``groups``: the number of layer groups;
- ``info``: facts about the making of the segment, as a JSON object of strings;
- ``background``: how many of the tokens stand before the last response (`Segment.background`).

The tensors are ``token_ids`` (int64, ``[tokens]``) and, for each layer group g from 0, what the
codec stores of its pair, as ``slots.g.0…`` and ``slots.g.1…`` (see `lag_integrations.kv.codecs`).
The text of the trace is not in the file, though its token ids are.

The checksum finds damage, and files that somebody else wrote: who does not know the secret cannot
make a valid one.
"""

from __future__ import annotations

import hmac
import json
from dataclasses import asdict
from math import prod
from typing import Any

import torch
from safetensors.torch import save

from lag_integrations.errors import (
    EncodingError,
    FingerprintMismatchError,
    SegmentCorruptedError,
)
from lag_integrations.kv.cache import LayerKV
from lag_integrations.kv.codecs import Codec, codec
from lag_integrations.kv.mapped_file import Data
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
_NO_DIGITS = b"0" * 64
_DIGITS = slice(37, 101)


def dump_segment(segment: Segment, key: SegmentKey, secret: bytes) -> bytes:
    """Return a segment as the content of a file.

    Equal segments give equal bytes.

    Args:
        segment: The segment.
        key: What it is the segment of.
        secret: The store's, which `load_segment` is given again.

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
        "checksum": _NO_DIGITS.decode(),
        "format": FORMAT,
        "version": VERSION,
        **asdict(key),
        "dtype": dtypes.pop(),
        "groups": str(len(segment.slots)),
        "info": json.dumps(segment.info, sort_keys=True),
        "background": str(segment.background),
    }
    # The library writes metadata in random order; the checksum is to have a fixed place.
    header, payload = _split(save(tensors))
    text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    digits = _checksum(secret, head, payload)
    return b"".join((head[: _DIGITS.start], digits, head[_DIGITS.stop :], payload))


def load_segment(data: Data, key: SegmentKey, secret: bytes) -> Segment:
    """Return the segment in the content of a file, on the CPU.

    Args:
        data: The content. Where it can be written to, the segment's tensors are views of it: it
            must not be changed any more.
        key: What it must be the segment of.
        secret: That of the store which must have written it.

    Raises:
        SegmentCorruptedError: It is damaged, not a segment, written by somebody else, or that of
            another log, selection or codec.
        FingerprintMismatchError: Another model wrote it.
        StoreError: The key has no codec of this installation; says nothing about the data.
    """
    used = codec(key.codec)
    # Nothing is interpreted, not even the length of the header, before the checksum is right.
    view = memoryview(bytearray(data) if isinstance(data, bytes) else data)
    if not hmac.compare_digest(view[_DIGITS], _checksum(secret, view)):
        raise SegmentCorruptedError(
            f"The segment of log {key.log_id} is damaged, not of version {VERSION}, or was not "
            "written by this store: its checksum is wrong. Encode its trace again."
        )
    try:
        header, payload = _split(view)
        metadata = header.pop("__metadata__")
        _require_key(metadata, key)
        tensors = {name: _tensor(payload, **about) for name, about in header.items()}
        return _decode(tensors, metadata, used)
    except (FingerprintMismatchError, SegmentCorruptedError):
        raise
    except Exception as error:  # of any kind: a right checksum makes no sense of bytes
        raise SegmentCorruptedError(
            f"The segment of log {key.log_id} is whole, but cannot be understood "
            f"({type(error).__name__}: {error}). Encode its trace again."
        ) from error


def resealed(data: Data, secret: bytes) -> bytes:
    """Return a file as a store with another secret would have written it.

    Args:
        data: The file, which `load_segment` has read.
        secret: The other secret.
    """
    view = memoryview(data)
    digits = _checksum(secret, view)
    return b"".join((view[: _DIGITS.start], digits, view[_DIGITS.stop :]))


def _split(data: bytes | memoryview) -> tuple[dict[str, Any], memoryview]:
    """Return header and payload of a safetensors file."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(bytes(data[8:end])), memoryview(data)[end:]


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


def _checksum(secret: bytes, head: bytes | memoryview, payload: bytes | memoryview = b"") -> bytes:
    """Return the digits that a file, given in one or two pieces, must have."""
    view = memoryview(head)
    digest = hmac.new(secret, digestmod="sha256")
    for piece in (view[: _DIGITS.start], _NO_DIGITS, view[_DIGITS.stop :], payload):
        digest.update(piece)
    return digest.hexdigest().encode()


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
