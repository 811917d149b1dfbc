"""The control arm: the very tokens of the segments, at the same place, but read by the model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lag_integrations.engine import Engine, EngineStream, Placement
from lag_integrations.generation.row import Generation
from lag_integrations.kv.segment import Segment
from lag_integrations.trace import Message


def generate_with_text(
    engine: Engine,
    messages: Sequence[Message],
    segments: Sequence[Segment],
    *,
    placement: Placement = "before_question",
    max_new_tokens: int,
    stop: Sequence[str] = (),
    **settings: Any,
) -> Generation:
    """Generate with the segments' tokens in the prompt, to be read like any text."""
    started = time.perf_counter()
    prompt_ids, split = engine.prompt(messages, placement=placement, segments=len(segments))
    kept = [token for segment in segments for token in segment.token_ids.tolist()]
    token_ids = [*prompt_ids[:split], *kept, *prompt_ids[split:]]
    request = engine.request(messages, max_new_tokens=max_new_tokens, stop=stop, **settings)
    stream = EngineStream(engine, replace(request, prompt_ids=token_ids), started)
    for _ in stream:
        pass
    return stream.generation
