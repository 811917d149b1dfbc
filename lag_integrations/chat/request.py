"""One call of a chat model, whichever the framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lag_integrations.chat.output_format import OutputFormat
from lag_integrations.chat.query import query_of
from lag_integrations.chat.settings import SAMPLING, ModelSettings
from lag_integrations.engine.segment_placement import Placement
from lag_integrations.engine.tools.schema import Schema
from lag_integrations.errors import SettingsError
from lag_integrations.memory.loading import MissingSegments
from lag_integrations.memory.safe_recall import AnyWhere
from lag_integrations.traces.message import Message
from lag_integrations.traces.owner import NOBODY, Owner
from lag_integrations.traces.sources import Source

# Said by agents and other integrations to models behind an API; there is nothing to do for them.
_MEANINGLESS = ("strict", "stream", "stream_usage")


@dataclass(frozen=True)
class RetrievalSettings:
    """How logs are recalled.

    Attributes:
        k: Most logs; the memory's own setting by default, 0 for none.
        min_score: Least similarity; the memory's own setting by default.
        query: What logs are searched by; by default the user's last message, or where that recalls
            nothing, the last two.
        said: What the user said, in order, if not all that stands in their name.
        where: Only logs with such metadata; a function was asked before.
        owner: Whose run asks.
        log_ids: Exactly these logs instead.
        shown: Documents that the prompt holds: no logs of which one was changed since.
        missing: What to do with a log that has no valid segment for this model: see
            `LogMemory.load`.
        as_text: Give every log's last response as text, to compare.
        best_last: Whether the most relevant log stands nearest to the question (else farthest).
    """

    k: int | None = None
    min_score: float | None = None
    query: str | None = None
    said: Sequence[str] | None = None
    where: AnyWhere | None = None
    owner: Owner = NOBODY
    log_ids: Sequence[str] | None = None
    shown: Sequence[Source] = ()
    missing: MissingSegments = "encode"
    as_text: bool = False
    best_last: bool = True


@dataclass(frozen=True)
class ChatRequest:
    """One call of a chat model.

    Attributes:
        messages: The conversation.
        output: What the answer must look like.
        retrieval: How logs are recalled.
        placement: Where their segments stand.
        attention_temperature: How the model attends to them; see `RequestBuilder.build`.
        question: The question's text, where the last user message holds more, as documents.
        max_tokens: Most tokens to generate.
        stop: Texts that end the answer.
        top_logprobs: See `RequestBuilder.build`, as for ``timeout``.
        sampling: Fields of `Sampling`.
        metadata: What is said of the run, for a server that captures it.
        capture: Whether such a server captures it; as it does by itself if None.
        cache_salt: Whose prompt it is, within the memory; see `RequestBuilder.build`.
        share_system: Whether system message and tools may be reused for everybody.
    """

    messages: Sequence[Message]
    output: OutputFormat = field(default_factory=OutputFormat)
    retrieval: RetrievalSettings = field(default_factory=RetrievalSettings)
    placement: Placement | None = None
    attention_temperature: float | None = None
    question: str | None = None
    max_tokens: int = 512
    stop: Sequence[str] = ()
    top_logprobs: int | None = None
    timeout: float | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    capture: bool | None = None
    cache_salt: str = ""
    share_system: bool = False


def build_request(
    settings: ModelSettings,
    messages: Sequence[Message],
    overrides: Mapping[str, Any],
    *,
    framework_messages: Sequence[Any],
    tools: Sequence[dict[str, Any]] = (),
    schema: Schema | None = None,
    shown: Sequence[Source] = (),
    said: Sequence[str] | None = None,
) -> ChatRequest:
    """Build the request of a call; what the call does not set is as the model says.

    Args:
        settings: The model.
        messages: The conversation.
        overrides: Settings of the call, by the same names; also ``tool_choice``,
            ``parallel_tool_calls``, ``kv_log_ids``, ``logs_as_text``, ``question`` (its words),
            ``owner`` (see `RetrievalSettings`), ``run_metadata`` and ``capture`` (see
            `ChatRequest`), and OpenAI's names of ``max_tokens``. What is left over is for sampling,
            which refuses what it does not know.
        framework_messages: The conversation, as the framework has it.
        tools: Tools, in OpenAI's form.
        schema: JSON schema of the answer.
        shown: Documents that the conversation holds, if logs are to be as new as these.
        said: What the user said, if not all that stands in their name.

    Raises:
        SettingsError: The call says ``max_tokens`` twice, by two of its names.
    """
    rest = {name: value for name, value in overrides.items() if name not in _MEANINGLESS}

    def setting(name: str) -> Any:
        value = rest.pop(name, None)
        return getattr(settings, name) if value is None else value

    for name in ("max_new_tokens", "max_completion_tokens"):
        if name in rest and rest.setdefault("max_tokens", limit := rest.pop(name)) != limit:
            raise SettingsError(
                f"The call says max_tokens={rest['max_tokens']} and {name}={limit}, which are two "
                "names of one setting; give one."
            )
    with_logprobs, top_logprobs = setting("logprobs"), setting("top_logprobs")
    stop = setting("stop") or ()
    output = OutputFormat(
        tools=tools,
        tool_choice=rest.pop("tool_choice", None),
        schema=schema,
        parallel_tool_calls=rest.pop("parallel_tool_calls", None) is not False,
    )
    sampling = {name: setting(name) for name in SAMPLING}
    return ChatRequest(
        messages=messages,
        output=output,
        retrieval=RetrievalSettings(
            k=setting("k"),
            min_score=setting("min_score"),
            query=query_of(setting("query"), framework_messages),
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
        question=rest.pop("question", None),
        max_tokens=setting("max_tokens"),
        stop=[stop] if isinstance(stop, str) else stop,
        top_logprobs=(top_logprobs or 0) if with_logprobs or top_logprobs else None,
        timeout=setting("timeout"),
        metadata=rest.pop("run_metadata", {}),
        capture=rest.pop("capture", None),
        cache_salt=setting("cache_salt"),
        share_system=setting("share_system"),
        sampling={**sampling, **rest},
    )
