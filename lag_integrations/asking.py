"""The settings of a framework's model and of a call of it, as one question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lag_integrations.answering import Form, Question
from lag_integrations.injection import Recall
from lag_integrations.settings import ModelSettings
from lag_integrations.tools.schema import Schema
from lag_integrations.trace import Message

SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
)
# Said by agents and other integrations to models behind an API; there is nothing to do for them.
_MEANINGLESS = ("strict", "parallel_tool_calls", "stream", "stream_usage")


def ask(
    settings: ModelSettings,
    chat: Sequence[Message],
    given: Mapping[str, Any],
    *,
    tools: Sequence[dict[str, Any]] = (),
    schema: Schema | None = None,
) -> Question:
    """A question; what a call does not set is as the model says.

    Args:
        settings: The model.
        chat: The conversation.
        given: Settings of the call, by the same names; also ``tool_choice``, ``kv_log_ids``,
            ``logs_as_text`` and ``question`` (its words), and OpenAI's names of ``max_tokens``.
            What is left over is for sampling, which refuses what it does not know.
        tools: Tools, in OpenAI's form.
        schema: JSON schema of the answer.
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
    return Question(
        chat=chat,
        form=Form(tools=tools, tool_choice=rest.pop("tool_choice", None), schema=schema),
        recall=Recall(
            k=setting("k"),
            min_score=setting("min_score"),
            log_ids=rest.pop("kv_log_ids", None),
            missing=setting("missing_segments"),
            as_text=rest.pop("logs_as_text", False),
            best_last=setting("best_last"),
        ),
        placement=setting("placement"),
        attention_temperature=setting("attention_temperature"),
        words=rest.pop("question", None),
        max_tokens=setting("max_tokens"),
        stop=[stop] if isinstance(stop, str) else stop,
        top_logprobs=(top_logprobs or 0) if with_logprobs or top_logprobs else None,
        timeout=setting("timeout"),
        sampling={**sampling, **rest},
    )
