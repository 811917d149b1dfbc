"""When, and on what, something is measured."""

from __future__ import annotations

import platform
from datetime import date

import torch


def machine() -> str:
    """Return the GPU, else the kind of processor, and the number of threads."""
    on = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return f"{on}, {torch.get_num_threads()} threads"


def stamp() -> str:
    """Return date, machine and torch's version, in one line to stand below a table."""
    return f"{date.today()} · {machine()} · torch {torch.__version__}"
