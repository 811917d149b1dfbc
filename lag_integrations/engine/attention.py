"""Attention to what is in a cache already."""

from __future__ import annotations

import os

import torch


def attend_in_groups(device: torch.device) -> None:
    """Let keys and values that several heads share be read where they are (CPU).

    Wherever there is a mask (a question behind injected segments), transformers copies them for
    every head first, unless this is set: with 4,096 tokens, most of the time went there. Kernels of
    GPUs need the copies, so it is left alone where there is one: it holds for the whole process.

    Args:
        device: The model's.
    """
    others = (torch.cuda, torch.xpu, torch.backends.mps)
    if device.type == "cpu" and not any(other.is_available() for other in others):
        os.environ.setdefault("TRANSFORMERS_SDPA_FORCE_GQA", "1")
