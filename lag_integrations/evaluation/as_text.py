"""The control arm: the very tokens of the segments, at the same place, but read by the model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lag_integrations.engine.engine import Engine
from lag_integrations.engine.generation.sequence import Generation, Request
from lag_integrations.kv.segment import Segment
from lag_integrations.traces.message import Message


def read_as_text(request: Request) -> Request:
    """Return the request with the segments' tokens in the prompt, read like any text."""
    return replace(request, prompt_ids=request.token_ids, segments=())


def generate_with_text(
    engine: Engine,
    messages: Sequence[Message],
    segments: Sequence[Segment],
    **settings: Any,
) -> Generation:
    """Generate with the segments' tokens in the prompt; settings are those of `Engine.request`."""
    started = time.perf_counter()
    request = read_as_text(engine.request(messages, segments, **settings))
    stream = engine.start(request, started)
    for _ in stream:
        pass
    return stream.generation
