"""Attention to what is in a cache already."""

from __future__ import annotations

import os

import torch


def attend_in_groups() -> None:
    """Let keys and values that several heads share be read where they are (CPU).

    Wherever there is a mask (a question behind injected segments), transformers copies them for
    every head first, unless this is set: with 4,096 tokens, most of the time went there. On a GPU,
    the fused kernels need the copies, so it is left alone where there is one.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("TRANSFORMERS_SDPA_FORCE_GQA", "1")
