"""What clients of the gateway may ask, and what of it they may set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from lag_integrations.engine.segment_placement import Placement
from lag_integrations.memory.loading import MissingSegments
from lag_integrations.traces.storable import storable
from lag_integrations.traces.trace import Outcome

_MOST_MESSAGES = 4_096
_MOST_TOOLS = 512
_LONGEST_NAME = 512

Name = Annotated[str, Field(min_length=1, max_length=_LONGEST_NAME)]
"""A name or an id."""


def _checked_tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, Mapping):
        raise ValueError('a tool must be {"type": "function", "function": {"name": …}}')
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError("the function of a tool must have a name")
    if not isinstance(function.get("parameters") or {}, Mapping):
        raise ValueError("the parameters of a tool must be a JSON schema")
    checked: dict[str, Any] = storable(tool)
    return checked


Tool = Annotated[dict[str, Any], AfterValidator(_checked_tool)]
"""A tool in OpenAI's form."""
Tools = Annotated[list[Tool], Field(max_length=_MOST_TOOLS)]
"""The tools of a call."""


class ApiModel(BaseModel):
    """Refuses fields that it does not know: what is asked for is done, or said."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class SourceOfRun(ApiModel):
    """A piece of a document that a run was shown."""

    id: Name | None = None
    """Id of the piece."""
    documents: Annotated[list[Name], Field(max_length=64)] = Field(default_factory=list)
    """Names of its document, such as its id and path."""
    hash: Annotated[str, Field(max_length=128)]
    """Hash of its content."""
    version: Annotated[str, Field(max_length=128)] | None = None
    """Hash of the whole document, if known."""
    score: float | None = None
    """How well it fitted the query, if known."""


class LagOptions(ApiModel):
    """How logs are recalled for a call, and whether it becomes one."""

    k: int | None = Field(default=None, ge=0, le=64)
    """Most logs to recall; the server's setting by default. 0 is none."""
    min_score: float | None = Field(default=None, ge=-1, le=1)
    """Least similarity of a recalled log; the server's setting by default."""
    query: Annotated[str, Field(max_length=100_000)] | None = None
    """What logs are searched by; by default the user's last message, or where that recalls nothing,
    the last two."""
    where: dict[str, Any] | None = None
    """Only logs with such metadata are recalled."""
    log_ids: Annotated[list[Name], Field(max_length=64)] | None = None
    """Exactly these logs instead; an empty list for none."""
    as_text: bool = False
    """Whether logs are given as text, to compare."""
    question: str | None = None
    """The question's words, where the last user message holds more, as documents."""
    placement: Placement | None = None
    """Where segments stand in the prompt."""
    attention_temperature: float | None = Field(default=None, gt=0)
    """How sharply the model attends to recalled logs."""
    missing_segments: MissingSegments | None = None
    """What to do with a recalled log that has no valid segment."""
    best_last: bool | None = None
    """Whether the most relevant log stands nearest to the question."""
    thread_id: Name | None = None
    """Which conversation it is: with ``user``, whose run it is."""
    said: Annotated[list[str], Field(max_length=_MOST_MESSAGES)] | None = None
    """What the user said, in order, if not all that stands in their name."""
    sources: Annotated[list[SourceOfRun], Field(max_length=10_000)] = Field(default_factory=list)
    """The documents that the conversation holds: a run that read documents is recalled for its
    owner alone until it is judged, and a log of an older version of one is not recalled."""
    capture: bool = True
    """Whether the run becomes a log once it has an answer."""


class StreamOptions(ApiModel):
    """What a stream says at its end."""

    include_usage: bool = False
    """Whether a last chunk says how many tokens were read and written."""
    include_obfuscation: bool = False
    """Accepted as OpenAI does; nothing is added."""


class ApiMessage(BaseModel):
    """A message of a conversation; what else a client repeats of an answer is not read."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    """Who says it."""
    content: str | list[dict[str, Any] | str] | None = None
    """Text, or content blocks with text."""
    name: str | None = None
    """Name of the tool or speaker."""
    tool_calls: list[dict[str, Any]] | None = None
    """Calls of the assistant."""
    tool_call_id: str | None = None
    """For a tool's result, the call that it answers."""
    status: Literal["success", "error"] | None = None
    """For a tool's result, whether the tool failed."""


class ResponseFormat(BaseModel):
    """The form of an answer."""

    model_config = ConfigDict(extra="allow")

    type: Literal["text", "json_object", "json_schema"]
    """Plain text, some JSON object, or what fits the schema in ``json_schema``."""


class ChatCompletionRequest(ApiModel):
    """A call of a chat model, as OpenAI's API has it, with some settings of vLLM, and ``lag``."""

    model: Name
    """Name of the model, as ``/v1/models`` lists it."""
    messages: Annotated[list[ApiMessage], Field(min_length=1, max_length=_MOST_MESSAGES)]
    """The conversation."""
    stream: bool = False
    """Whether the answer comes in pieces, as server-sent events."""
    stream_options: StreamOptions | None = None
    """What a stream says at its end."""
    max_tokens: int | None = Field(default=None, ge=1, le=2**24)
    """Most tokens to generate."""
    max_completion_tokens: int | None = Field(default=None, ge=1, le=2**24)
    """Another name of `max_tokens`."""
    temperature: float | None = Field(default=None, ge=0)
    """Sampling temperature; 0 is greedy."""
    top_p: float | None = None
    """Probability mass to sample from."""
    top_k: int | None = Field(default=None, ge=-1, le=2**24)
    """Number of tokens to sample from; -1 is all."""
    min_p: float | None = None
    """Least probability to sample from, relative to the likeliest token."""
    repetition_penalty: float | None = None
    """Divides the logits of tokens that occurred, in the prompt too."""
    presence_penalty: float | None = None
    """Subtracted from the logits of tokens that were generated."""
    frequency_penalty: float | None = None
    """Subtracted once for each time a token was generated."""
    logit_bias: Annotated[dict[int, float], Field(max_length=4_096)] | None = None
    """Added to the logits, by token id."""
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    """Seed for sampling."""
    stop: str | Annotated[list[str], Field(max_length=64)] | None = None
    """Texts that end the answer."""
    logprobs: bool | None = None
    """Whether to give the log probability of each generated token."""
    top_logprobs: int | None = Field(default=None, ge=0, le=100)
    """Alternatives to give with each token's log probability."""
    n: Literal[1] | None = None
    """Number of answers: one."""
    tools: Tools | None = None
    """Tools that the model may call."""
    tool_choice: str | dict[str, Any] | None = None
    """Which of them it may or must call."""
    parallel_tool_calls: bool | None = None
    """Whether an answer may hold several calls."""
    response_format: ResponseFormat | None = None
    """The form of the answer."""
    user: Name | None = None
    """Whose run it is."""
    metadata: dict[Name, str | int | float | bool] | None = None
    """Metadata of the run's log. ``user_id`` and ``thread_id`` say whose it is."""
    cache_salt: Annotated[str, Field(max_length=_LONGEST_NAME)] | None = None
    """Whose prompts these are, where users share a key: see `ModelSettings.cache_salt`."""
    timeout: float | None = Field(default=None, ge=0)
    """Most seconds until the answer is whole; no more than the server allows."""
    lag: LagOptions = Field(default_factory=LagOptions)
    """How logs are recalled, and whether this becomes one."""
    store: bool | None = None
    """Accepted as OpenAI does; nothing but the memory's logs is stored."""
    service_tier: str | None = None
    """Accepted as OpenAI does; there is one tier."""
    safety_identifier: str | None = None
    """Accepted as OpenAI does; it is not used."""
    prompt_cache_key: str | None = None
    """Accepted as OpenAI does; what was read lately is reused whatever it says."""


class TokenizeRequest(ApiModel):
    """Which tokens a text has, or how many a conversation."""

    model: Name
    """Name of the model."""
    text: Annotated[str, Field(max_length=2**22)] | None = None
    """A text."""
    messages: Annotated[list[ApiMessage], Field(min_length=1, max_length=_MOST_MESSAGES)] | None = (
        None
    )
    """A conversation, instead."""
    tools: Tools | None = None
    """Its tools."""


class RunFeedback(ApiModel):
    """How a run ended, or whether logs helped."""

    run_id: Name | None = None
    """The run, as an answer's ``lag`` names it."""
    outcome: Outcome | None = None
    """How it ended."""
    log_ids: Annotated[list[Name], Field(min_length=1, max_length=1_000)] | None = None
    """Logs, instead of a run."""
    helped: bool | None = None
    """Whether these logs helped; else they harmed."""
