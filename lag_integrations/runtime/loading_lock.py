"""Models are loaded one at a time: transformers' ``from_pretrained`` is not thread safe."""

from __future__ import annotations

import threading

LOADING = threading.Lock()
"""Held while a model is loaded. The memory's worker loads the embedder while others load theirs."""
