"""Sequences of llama.cpp through its C interface, and segments in its format.

Only where ``llama-cpp-python`` is installed; written for version 0.3.36.
"""

from __future__ import annotations

import ctypes
import logging
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lag_integrations.kv.cache import LayerKV

CacheType = Literal["f32", "f16"]
_MAGIC = 0xAF143CD8  # `io_magic` of llama-context.cpp
_TYPES: dict[CacheType, tuple[int, Any]] = {"f32": (0, np.float32), "f16": (1, np.float16)}


@dataclass(frozen=True)
class Layout:
    """How a context holds keys and values.

    Attributes:
        cache: Type of their numbers.
        transposed: Whether values lie dimension by dimension (without flash attention).
        interleaved: Whether keys have the two halves of each rotated pair side by side: a GGUF
            file of the Llama architecture has its projections permuted that way.
    """

    cache: CacheType
    transposed: bool
    interleaved: bool


class LlamaCpp:
    """A model that llama.cpp has loaded, and one cache for several sequences.

    Args:
        path: The GGUF file.
        context: Tokens of all sequences together.
        cache: Type of keys and values.
        flash: Whether it uses flash attention.
        threads: How many compute.

    Attributes:
        layout: How it holds keys and values.

    Raises:
        RuntimeError: llama.cpp cannot load the file, or cannot turn its keys.
    """

    def __init__(
        self, path: Path, *, context: int, cache: CacheType, flash: bool, threads: int
    ) -> None:
        import llama_cpp  # type: ignore[import-not-found, unused-ignore]

        self._lib: Any = llama_cpp
        logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
        self._lib.llama_backend_init()
        self._model = self._lib.llama_model_load_from_file(
            str(path).encode(), self._lib.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}.")
        wanted = self._lib.llama_context_default_params()
        wanted.n_ctx = wanted.n_batch = context
        wanted.n_seq_max, wanted.kv_unified = 8, True
        wanted.n_threads = wanted.n_threads_batch = threads
        wanted.type_k = wanted.type_v = _TYPES[cache][0]
        wanted.flash_attn_type = int(flash)
        self._context = self._lib.llama_init_from_model(self._model, wanted)
        self._memory = self._lib.llama_get_memory(self._context)
        if not self._lib.llama_memory_can_shift(self._memory):
            raise RuntimeError(f"llama.cpp cannot move the keys of {path}.")
        vocabulary = self._lib.llama_model_get_vocab(self._model)
        self._vocabulary = int(self._lib.llama_vocab_n_tokens(vocabulary))
        kind = self._lib.llama_model_rope_type(self._model)
        self.layout = Layout(cache, not flash, kind == self._lib.LLAMA_ROPE_TYPE_NORM)

    def close(self) -> None:
        """Release the memory of context and model."""
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def read(
        self, sequence: int, tokens: Sequence[int], start: int, *, logits: int = 1
    ) -> torch.Tensor:
        """Read tokens into a sequence.

        Args:
            sequence: Its number.
            tokens: At least one.
            start: Position of the first: where the sequence ends, if it holds any.
            logits: After how many of them, the last ones, logits are wanted.

        Returns:
            fp32 ``[logits, vocabulary]``.

        Raises:
            RuntimeError: There is no room, or the positions do not follow each other.
        """
        count = len(tokens)
        batch = self._lib.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            for index, token in enumerate(tokens):
                batch.token[index], batch.pos[index] = token, start + index
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
                batch.logits[index] = index >= count - logits
            code = self._lib.llama_decode(self._context, batch)
        finally:
            self._lib.llama_batch_free(batch)
        if code:
            raise RuntimeError(f"llama_decode says {code}.")
        found = self._lib.llama_get_logits(self._context)
        return torch.tensor(np.ctypeslib.as_array(found, (logits, self._vocabulary)))

    def write(self, sequence: int, logits: torch.Tensor, start: int, tokens: int) -> list[int]:
        """Generate greedily: return so many tokens behind what a sequence holds."""
        answer = [int(logits[-1].argmax())]
        while len(answer) < tokens:
            logits = self.read(sequence, answer[-1:], start + len(answer) - 1)
            answer.append(int(logits[-1].argmax()))
        return answer

    def forget(self, sequence: int) -> None:
        """Drop all that a sequence holds."""
        self._lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def keep(self, sequence: int, begin: int, end: int) -> None:
        """Drop what a sequence holds, but for the tokens from one position to before another."""
        self._lib.llama_memory_seq_rm(self._memory, sequence, -1, begin)
        self._lib.llama_memory_seq_rm(self._memory, sequence, end, -1)

    def move(self, sequence: int, by: int) -> None:
        """Move a sequence's tokens to other positions; keys are turned with the next pass."""
        self._lib.llama_memory_seq_add(self._memory, sequence, -1, -1, by)

    def share(self, source: int, target: int) -> None:
        """Let a sequence see another one's tokens, too, where they stand; nothing is copied."""
        self._lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def save(self, sequence: int) -> np.ndarray[Any, Any]:
        """Return the state of a sequence, uint8."""
        state = np.empty(self._lib.llama_state_seq_get_size(self._context, sequence), np.uint8)
        self._lib.llama_state_seq_get_data(self._context, _bytes(state), state.size, sequence)
        return state

    def load(self, sequence: int, state: np.ndarray[Any, Any]) -> None:
        """Replace all that a sequence holds by a state.

        Raises:
            RuntimeError: The state does not fit the model, the context, or its room.
        """
        read = self._lib.llama_state_seq_set_data(
            self._context, _bytes(state), state.size, sequence
        )
        if read != state.size:
            raise RuntimeError(f"llama.cpp took {read} of {state.size} bytes of a state.")


def state_of(layers: Sequence[LayerKV], start: int, layout: Layout) -> np.ndarray[Any, Any]:
    """Return keys and values as the state of a sequence (`llama_kv_cache::state_write`).

    Args:
        layers: Keys, rotated to where they stand, and values of each layer, ``[1, heads, tokens,
            dim]``, as transformers has them.
        start: Position of the first token; the others follow.
        layout: How the context holds them.

    Returns:
        uint8, to be loaded into any sequence.
    """
    kind, dtype = _TYPES[layout.cache]
    tokens = layers[0][0].shape[2]
    parts = [struct.pack("<IiII", _MAGIC, 0, 1, tokens)]  # sequence 0, one stream
    parts += [struct.pack("<iIi", start + token, 1, 0) for token in range(tokens)]
    parts.append(struct.pack("<II", layout.transposed, len(layers)))
    for keys, _ in layers:
        if layout.interleaved:
            keys = torch.stack(keys.chunk(2, dim=-1), dim=-1).flatten(-2)
        rows = _rows(keys)
        parts.append(struct.pack("<iQ", kind, rows.shape[1] * np.dtype(dtype).itemsize))
        parts.append(rows.astype(dtype).tobytes())
    for _, values in layers:
        rows = _rows(values)
        if layout.transposed:
            size = np.dtype(dtype).itemsize
            parts.append(struct.pack("<iII", kind, size, rows.shape[1]))
            rows = rows.T
        else:
            parts.append(struct.pack("<iQ", kind, rows.shape[1] * np.dtype(dtype).itemsize))
        parts.append(rows.astype(dtype).tobytes())
    return np.frombuffer(b"".join(parts), np.uint8)


def _rows(slot: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return ``[tokens, heads * dim]``, fp32."""
    rows: np.ndarray[Any, Any] = slot[0].transpose(0, 1).flatten(1).float().numpy()
    return rows


def _bytes(state: np.ndarray[Any, Any]) -> Any:
    return state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
