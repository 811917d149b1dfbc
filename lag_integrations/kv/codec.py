"""Segments to and from files: safetensors, written atomically, checked when read."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from lag_integrations.errors import FingerprintMismatchError, SegmentCorruptedError
from lag_integrations.kv.cache import Slots
from lag_integrations.kv.segment import Segment

FORMAT = "lag-segment"
VERSION = "1"


def write_segment(segment: Segment, path: Path) -> int:
    """Write a segment so that a reader sees the whole file or none.

    Layout: ``token_ids`` and, for each layer group g, ``slots.g.0`` and ``slots.g.1``, in the dtype
    they have; the metadata carries format, version, fingerprint and info.

    Returns:
        Bytes written.
    """
    tensors = {"token_ids": segment.token_ids}
    for group, pair in enumerate(segment.slots):
        for index, slot in enumerate(pair):
            tensors[f"slots.{group}.{index}"] = slot.detach().cpu().contiguous()
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": segment.fingerprint,
        "groups": str(len(segment.slots)),
        "info": json.dumps(segment.info),
    }
    data = save(tensors, metadata=metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: two threads may encode one log at once.
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
    return len(data)


def read_segment(path: Path, *, fingerprint: str, device: torch.device | str = "cpu") -> Segment:
    """Read a segment that a given model wrote.

    Args:
        path: File written by `write_segment`.
        fingerprint: The `Fingerprint.id` of the model that is to use it.
        device: Where the slots go.

    Raises:
        SegmentCorruptedError: The file is missing, cut short, or not a segment.
        FingerprintMismatchError: Another model wrote it.
    """
    try:
        # Read, not memory-mapped: a file cut short while mapped would kill the process.
        data = path.read_bytes()
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = header.get("__metadata__", {})
        if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
            raise SegmentCorruptedError(f"{path.name} is not a {FORMAT} file of version {VERSION}.")
        if metadata["fingerprint"] != fingerprint:
            raise FingerprintMismatchError(
                f"{path.name} was encoded by model {metadata['fingerprint'][:12]}, not by "
                f"{fingerprint[:12]}; encode its trace again with the model in use."
            )
        slots: tuple[Slots, ...] = tuple(
            (
                tensors[f"slots.{group}.0"].to(device),
                tensors[f"slots.{group}.1"].to(device),
            )
            for group in range(int(metadata["groups"]))
        )
        token_ids, info = tensors["token_ids"], json.loads(metadata["info"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise SegmentCorruptedError(
            f"{path.name} cannot be read as a segment ({type(error).__name__}: {error})."
        ) from error
    return Segment(token_ids, slots, fingerprint, info)
