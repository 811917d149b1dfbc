"""The keyword arguments of `LAGChatModel`, for type checkers and editors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from langchain_core.caches import BaseCache
from langchain_core.callbacks import Callbacks
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.rate_limiters import BaseRateLimiter

from lag_integrations.chat.settings_dict import ModelSettingsDict


class LAGChatModelSettings(ModelSettingsDict, total=False):
    """The fields of `LAGChatModel`, which says what they mean, and those of `BaseChatModel`."""

    max_batch_size: int
    streaming: bool
    validate_model_on_init: bool

    name: str | None
    cache: BaseCache | bool | None
    verbose: bool
    callbacks: Callbacks
    tags: list[str] | None
    metadata: dict[str, Any] | None
    custom_get_token_ids: Callable[[str], list[int]] | None
    rate_limiter: BaseRateLimiter | None
    disable_streaming: bool | Literal["tool_calling"]
    output_version: str | None
    profile: ModelProfile | None
