"""The settings of a framework's model and of a call of it, as one question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lag_integrations.chat.context import RetrievalSettings
from lag_integrations.chat.query import query_of
from lag_integrations.chat.response import ChatRequest, OutputFormat
from lag_integrations.chat.settings import SAMPLING, ModelSettings
from lag_integrations.engine.tools.schema import Schema
from lag_integrations.traces.provenance import NOBODY
from lag_integrations.traces.sources import Source
from lag_integrations.traces.trace import Message

# Said by agents and other integrations to models behind an API; there is nothing to do for them.
_MEANINGLESS = ("strict", "parallel_tool_calls", "stream", "stream_usage")


def build_request(
    settings: ModelSettings,
    chat: Sequence[Message],
    given: Mapping[str, Any],
    *,
    messages: Sequence[Any],
    tools: Sequence[dict[str, Any]] = (),
    schema: Schema | None = None,
    shown: Sequence[Source] = (),
    said: Sequence[str] | None = None,
) -> ChatRequest:
    """A question; what a call does not set is as the model says.

    Args:
        settings: The model.
        chat: The conversation.
        given: Settings of the call, by the same names; also ``tool_choice``, ``kv_log_ids``,
            ``logs_as_text``, ``question`` (its words), ``owner`` (see `RetrievalSettings`), and
            OpenAI's names of ``max_tokens``. What is left over is for sampling, which refuses what
            it does not know.
        messages: The conversation, as the framework has it.
        tools: Tools, in OpenAI's form.
        schema: JSON schema of the answer.
        shown: Documents that the conversation holds, if logs are to be as new as these.
        said: What the user said, if not all that stands in their name.
    """
    rest = {name: value for name, value in given.items() if name not in _MEANINGLESS}

    def setting(name: str) -> Any:
        value = rest.pop(name, None)
        return getattr(settings, name) if value is None else value

    for name in ("max_new_tokens", "max_completion_tokens"):
        if name in rest:
            rest.setdefault("max_tokens", rest.pop(name))
    with_logprobs, top_logprobs = setting("logprobs"), setting("top_logprobs")
    stop = setting("stop") or ()
    sampling = {name: setting(name) for name in SAMPLING}
    return ChatRequest(
        chat=chat,
        form=OutputFormat(tools=tools, tool_choice=rest.pop("tool_choice", None), schema=schema),
        recall=RetrievalSettings(
            k=setting("k"),
            min_score=setting("min_score"),
            query=query_of(setting("query"), messages),
            said=said,
            where=setting("where"),
            owner=rest.pop("owner", NOBODY),
            log_ids=rest.pop("kv_log_ids", None),
            shown=shown,
            missing=setting("missing_segments"),
            as_text=rest.pop("logs_as_text", False),
            best_last=setting("best_last"),
        ),
        placement=setting("placement"),
        attention_temperature=setting("attention_temperature"),
        question_text=rest.pop("question", None),
        max_tokens=setting("max_tokens"),
        stop=[stop] if isinstance(stop, str) else stop,
        top_logprobs=(top_logprobs or 0) if with_logprobs or top_logprobs else None,
        timeout=setting("timeout"),
        cache_salt=setting("cache_salt"),
        share_system=setting("share_system"),
        sampling={**sampling, **rest},
    )
