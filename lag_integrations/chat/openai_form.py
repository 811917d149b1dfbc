"""What goes into a model call and comes out of it, in the form of OpenAI's API.

Frameworks and the gateway share it: https://platform.openai.com/docs/api-reference/chat.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lag_integrations.engine.tools.schema import Schema
from lag_integrations.errors import PromptError

if TYPE_CHECKING:
    from lag_integrations.engine.engine import Engine
    from lag_integrations.engine.generation.sequence import TokenLogprob

MEDIA = frozenset(
    (
        *("image", "image_url", "audio", "input_audio", "video"),
        *("file", "document", "media", "input_file", "input_image"),
    )
)
"""Types of content blocks that a model of texts cannot read."""


def media_error(kinds: Iterable[str]) -> PromptError:
    """Return the error of a message with content that is no text.

    Args:
        kinds: Types of that content.
    """
    return PromptError(
        f"A message holds content of type {', '.join(sorted(kinds))}; this model reads text only. "
        "Leave it out, or put its text in."
    )


def schema_in(response_format: Mapping[str, Any]) -> Schema | None:
    """Return the JSON schema in a ``response_format``; None if it asks for plain text.

    Raises:
        PromptError: It has the type ``json_schema``, but no schema.
    """
    kind = response_format.get("type")
    if kind == "json_object" and "properties" not in response_format:
        inner = response_format.get("schema")
        return dict(inner) if isinstance(inner, Mapping) else {"type": "object"}
    if kind == "json_schema":
        inner = response_format.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if not isinstance(schema, Mapping):
            raise PromptError(
                'response_format has the type "json_schema", but no schema in '
                '["json_schema"]["schema"].'
            )
        return dict(schema)
    return None if response_format == {"type": "text"} else dict(response_format)


def call_dict(name: str, arguments: Any, id: str) -> dict[str, Any]:
    """Return a tool call.

    Args:
        name: Name of the tool.
        arguments: Arguments by name, or as the model wrote them.
        id: Id of the call.
    """
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def logprob_dict(engine: Engine, entry: TokenLogprob) -> dict[str, Any]:
    """Return the log probabilities at one token."""

    def entry_of(token: int, logprob: float) -> dict[str, Any]:
        text = engine.tokenizer.decode([token])
        return {"token": text, "bytes": list(text.encode()), "logprob": logprob}

    return {
        **entry_of(entry.token_id, entry.logprob),
        "top_logprobs": [entry_of(token, logprob) for token, logprob in entry.top],
    }
