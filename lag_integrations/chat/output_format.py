"""What an answer must look like, as it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lag_integrations.engine.tools import ToolChoice
from lag_integrations.engine.tools.schema import Schema

ANY_JSON: Schema = {"type": "object"}
"""Some JSON object."""


@dataclass(frozen=True)
class OutputFormat:
    """What an answer must look like.

    Attributes:
        tools: Tools, in OpenAI's form.
        tool_choice: Which of them may or must be called; see `tools.choice`.
        schema: JSON schema of the answer.
        parallel_tool_calls: Whether an answer may hold several calls; else all but the first are
            left out.
    """

    tools: Sequence[dict[str, Any]] = ()
    tool_choice: ToolChoice = None
    schema: Schema | None = None
    parallel_tool_calls: bool = True
