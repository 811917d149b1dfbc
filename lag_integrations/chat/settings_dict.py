"""The keyword arguments of `ModelSettings`, for type checkers and editors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

from pydantic import SecretStr

from lag_integrations.chat.query import QueryOf
from lag_integrations.engine.quantization.scheme import Quantization
from lag_integrations.engine.segment_placement import Placement
from lag_integrations.memory.loading import MissingSegments
from lag_integrations.memory.memory import LogMemory


class ModelSettingsDict(TypedDict, total=False):
    """The fields of `ModelSettings`, which says what they mean; all but ``model``."""

    base_url: str | None
    api_key: SecretStr | None
    max_retries: int | None
    memory: LogMemory | None
    k: int | None
    min_score: float | None
    query: QueryOf | None
    where: dict[str, Any] | Callable[[Any], Any] | None
    placement: Placement | None
    attention_temperature: float | None
    missing_segments: MissingSegments
    best_last: bool
    max_tokens: int
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: dict[int, float] | None
    seed: int | None
    stop: list[str] | None
    logprobs: bool
    top_logprobs: int | None
    timeout: float | None
    cache_salt: str
    share_system: bool
    device: str | None
    dtype: str
    quantization: Quantization | None
    chat_template: str | None
    chat_template_kwargs: dict[str, Any]
    model_kwargs: dict[str, Any]
    quiet: bool
