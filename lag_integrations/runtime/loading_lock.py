"""Models are loaded one at a time, and tell their progress in one bar."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

LOADING = threading.Lock()
"""Held while a model is loaded: transformers' ``from_pretrained`` is not thread safe."""
_ours: ContextVar[bool] = ContextVar("_ours", default=False)
"""Whether a bar is one of the loading model; its weights are read on a thread of their own."""


@contextmanager
def loading(model: str | Path, *, quiet: bool = False) -> Iterator[None]:
    """Hold the loading lock, and show one bar in place of all that transformers shows.

    The bar is on stderr, on a terminal only, and gone when it is full. What other threads show
    stays as it is, and so does everything once the model is loaded. Downloads have the bars of
    huggingface_hub.

    Args:
        model: Name or folder of the model, for people.
        quiet: Show nothing, of downloads neither.
    """
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging

    form = {"desc": f"Loading {Path(model).name}", "leave": False, "disable": quiet or None}

    def ours(kwargs: dict[str, Any]) -> dict[str, Any]:
        return kwargs | form if _ours.get() else kwargs

    def bar(make: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kwargs = ours(kwargs)
        return make(*args, **kwargs) if hook is None else hook(make, args, kwargs)

    # transformers has hooks since 5.4; an older one shows its own bars.
    set_hook = getattr(logging, "set_tqdm_hook", lambda hook: None)
    with LOADING:
        hook, gguf_bar, token = set_hook(bar), gguf.tqdm, _ours.set(True)
        gguf.tqdm = lambda *args, **kwargs: gguf_bar(*args, **ours(kwargs))
        silenced = quiet and not are_progress_bars_disabled()
        if silenced:
            disable_progress_bars()
        try:
            yield
        finally:
            _ours.reset(token)
            set_hook(hook)
            gguf.tqdm = gguf_bar
            if silenced:
                enable_progress_bars()
