"""How models are shown tools, how they write calls, and how these are read back."""

from lag_integrations.engine.tools.choice import ToolChoice, must_call, select
from lag_integrations.engine.tools.detect import learn_tool_format
from lag_integrations.engine.tools.events import (
    CallEnded,
    CallFailed,
    Event,
    InvalidCall,
    Text,
    new_call_id,
)
from lag_integrations.engine.tools.format import ToolFormat, tool_result_text
from lag_integrations.engine.tools.json_format import HERMES, JsonFormat
from lag_integrations.engine.tools.stream_parser import AnswerReader, MarkReader

__all__ = [
    "HERMES",
    "AnswerReader",
    "CallEnded",
    "CallFailed",
    "Event",
    "InvalidCall",
    "JsonFormat",
    "MarkReader",
    "Text",
    "ToolChoice",
    "ToolFormat",
    "learn_tool_format",
    "must_call",
    "new_call_id",
    "select",
    "tool_result_text",
]
