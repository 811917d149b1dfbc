"""What an answer must look like, worked out for one model."""

from __future__ import annotations

import json
from collections.abc import Sequence

from lag_integrations.chat.output_format import ANY_JSON, OutputFormat
from lag_integrations.engine.engine import Engine
from lag_integrations.engine.generation.grammar import (
    SpecialTokens,
    json_answer,
    json_or_calls,
    rest_of_call,
    text_or_calls,
    text_without,
)
from lag_integrations.engine.generation.reasoning import (
    CLOSE,
    ChannelReader,
    ReasoningReader,
    Splitter,
)
from lag_integrations.engine.template_messages import with_system_text
from lag_integrations.engine.tools import (
    AnswerReader,
    MarkReader,
    ToolFormat,
    must_call,
    select,
)
from lag_integrations.errors import ToolChoiceError
from lag_integrations.traces.message import Message

_MOST_CALLS = 8
"""Calls of its own accord in one answer."""


class OutputPlan:
    """Works out for a model what it is told of an output format, held to, and how it is read.

    Args:
        engine: The model.
        form: The output format.
        begins: Whether the model begins an answer, rather than continue one.

    Raises:
        ToolChoiceError: The choice names no known tool, or a name holds a control token.

    Attributes:
        tools: The tools that the prompt shows.
        parallel_tool_calls: Whether an answer may hold several calls.
        prefix: What the answer begins with, given to the model.
        before: What of it belongs to the answer.
        after: What is added at the end of the answer.
        grammar: What the answer is held to, in llguidance's Lark dialect.
        thinks: Whether the answer begins within a thought.
    """

    def __init__(self, engine: Engine, form: OutputFormat, *, begins: bool) -> None:
        template = engine.chat_template
        format, special_tokens = template.tools, template.special_tokens
        held = engine.can_constrain
        self._format: ToolFormat | None = None
        self._schema = form.schema
        self.tools = select(form.tools, form.tool_choice)
        for tool in self.tools:
            _check_name(tool["function"]["name"], special_tokens)
        self.parallel_tool_calls = form.parallel_tool_calls
        self.prefix = self.before = self.after = ""
        self.grammar: str | None = None
        forced = bool(self.tools) and must_call(form.tool_choice)
        # An answer that is continued has no thought before it.
        opens = template.opens_reasoning and begins
        says = format.says if begins else ""
        self.thinks = opens and not forced and form.schema is None
        # What is held to a form, or goes on with an answer, is not all of one.
        self._is_free = begins and not forced and form.schema is None
        if self.tools:
            self._format = format
            one = forced or not form.parallel_tool_calls
            calls = format.forms(self.tools, most=1 if one else _MOST_CALLS)
            if forced:
                # The model gets the beginning for granted, and writes the rest alone.
                self.prefix = self.before = calls.opening
                self.after = calls.closing
                self.grammar = rest_of_call(calls, special_tokens)
                self._schema = None
            elif form.schema is not None:
                self.grammar = json_or_calls(calls, form.schema, special_tokens, says)
            elif held and format.is_marked:
                self.grammar = text_or_calls(calls, special_tokens, thinking=self.thinks)
        elif form.schema is not None:
            self.prefix, self.grammar = says, json_answer(form.schema)
        elif form.tools and held:
            self.prefix, self.grammar = says, text_without(format.starts(), special_tokens)
        self._channels = bool(says) and not self.prefix
        if opens and not self.thinks:  # no room for thoughts in what it is held to
            self.prefix = f"{CLOSE}\n\n{self.prefix}"

    def messages(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return the conversation, with what the model must know of the format."""
        if self._schema is None or self._schema == ANY_JSON:
            return messages
        schema = json.dumps(self._schema, ensure_ascii=False)
        return with_system_text(
            messages, f"Answer with JSON of this JSON schema, and nothing else:\n{schema}"
        )

    def splitter(self) -> Splitter:
        """Return what splits what the model thinks from what it says."""
        return ChannelReader() if self._channels else ReasoningReader(self.thinks)

    def reader(self) -> AnswerReader | MarkReader | None:
        """Return what reads the calls in an answer; None where there can be none."""
        if self._format is None:
            return None
        return (AnswerReader if self._is_free else MarkReader)(self._format, self.tools)


def _check_name(name: str, special_tokens: SpecialTokens) -> None:
    """Refuse what would be written into a call as more than a name: servers name their tools."""
    if held := special_tokens.within(name):
        raise ToolChoiceError(
            f"The name of a tool, {name[:80]!r}, holds the control token {held[0]!r} of this "
            "model; give the tool another name."
        )
