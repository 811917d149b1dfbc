"""Chat messages to tokens, through the tokenizer's own chat template, knowing what is where."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from lag_integrations.engine.control_tokens import ControlTokens, Cut
from lag_integrations.engine.generation.grammar import SpecialTokens
from lag_integrations.engine.generation.reasoning import CLOSE, OPEN
from lag_integrations.engine.rendered import RenderedPrompt, Span
from lag_integrations.engine.template_messages import (
    ChatMessage,
    TemplateMessage,
    merge_roles,
    short_id,
    with_system_text,
    without_mark,
)
from lag_integrations.engine.tools import learn_tool_format, tool_result_text
from lag_integrations.engine.tools.detect import common_length
from lag_integrations.errors import PromptError
from lag_integrations.traces.message import Message
from lag_integrations.traces.message_order import in_call_order

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "LAGMARK{}X"
# How templates refuse a conversation: by their own word, or by failing on it.
_REFUSALS = (TemplateError, ValueError, TypeError)


class ChatTemplate:
    """A tokenizer's chat template, and what can be learned about it by trying.

    Args:
        tokenizer: A fast tokenizer with a chat template.
        chat_template: A template to use instead of the tokenizer's own.
        template_kwargs: Further variables for the template (``{"enable_thinking": False}``).

    Attributes:
        tools: How tools are shown to this model, and how it calls them.
        special_tokens: Tokens that are not text, for grammars.
        suppressed_tokens: Special tokens that are no part of an answer's text. Those that thoughts
            and calls are made of are part of it.
        opens_reasoning: Whether a prompt ends with ``<think>``, so that answers begin inside.

    Raises:
        PromptError: There is no chat template, or the tokenizer is not a fast one.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if not tokenizer.is_fast:
            raise PromptError(
                f"{type(tokenizer).__name__} is a slow tokenizer, which cannot tell where a "
                "message stands among the tokens; load the model's fast tokenizer."
            )
        if chat_template is None and not tokenizer.chat_template:
            raise PromptError(
                "The tokenizer has no chat template (a base model?). Pass chat_template=… with a "
                "Jinja template, or use an instruction-tuned model."
            )
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self._template_kwargs = dict(template_kwargs or {})
        self._header, self._tail = self._learn_turns()
        self.tools = learn_tool_format(self._try)
        self._control = ControlTokens(tokenizer, self.source, own=(OPEN, CLOSE))
        special = _special_tokens(tokenizer)
        shown = self.tools.special_tokens(special) | ({OPEN, CLOSE} & special.keys())
        self.suppressed_tokens = frozenset(
            index for token, index in special.items() if token not in shown
        )
        self.special_tokens = SpecialTokens.of({**tokenizer.get_added_vocab(), **special}, special)
        asked = [TemplateMessage(role="user", content=_MARK.format(0))]
        self.opens_reasoning = self._apply(asked, True, None).rstrip().endswith("<think>")

    @property
    def source(self) -> str:
        """The template in use, for the fingerprint."""
        template = self.chat_template or self.tokenizer.chat_template
        text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
        if self._template_kwargs:
            text += json.dumps(self._template_kwargs, sort_keys=True)
        return text

    def render(
        self,
        messages: Sequence[Message],
        *,
        generate: bool = True,
        tools: Sequence[dict[str, Any]] | None = None,
    ) -> RenderedPrompt:
        """Render messages to tokens.

        Args:
            messages: The conversation. Where the template refuses the roles as they are (no system
                role, no tool role, turns that must alternate), messages are merged. Results of
                tools are shown in the order of their calls.
            generate: Whether the model is to answer: the header of its turn is appended; if the
                last message is the assistant's, that message is left open to be continued.
            tools: Tools to show, in OpenAI's form: by the template, or in the system message.

        Raises:
            PromptError: There is no message, or the template refuses the conversation.
        """
        if not messages:
            raise PromptError("There are no messages to render; give at least a user message.")
        messages = in_call_order(messages)
        # What looks like a control token must not become one.
        mark = self._control.mark_for(messages, tools)
        if mark is not None:
            messages = [self._control.marked(message, mark) for message in messages]
            tools = tools and self._control.marked_tools(tools, mark)
        if tools and not self.tools.shows_tools:
            messages = with_system_text(messages, self.tools.instructions(tools))
            tools = None
        chat = [self._turn(message, self.tools.shows_calls) for message in messages]
        try:
            text = self._apply(chat, generate, tools)
        except _REFUSALS:
            chat = merge_roles([self._turn(message, False) for message in messages])
            try:
                text = self._apply(chat, generate, tools)
            except _REFUSALS as error:
                raise PromptError(f"The chat template refuses the conversation: {error}") from error
        cut = Cut(text, ())
        if mark is not None:
            cut = self._control.cut(text, mark)
            text, chat = cut.text, [without_mark(turn, mark) for turn in chat]
            tools = tools and [without_mark(tool, mark) for tool in tools]
        places = self._locate(chat, text, generate, tools)
        token_ids, starts = self._control.tokens(cut)
        rendered = RenderedPrompt(text, token_ids, starts, ())
        furthest = accumulate((index for index, *_ in places), max)
        spans = tuple(
            Span(
                chat[index].origin,
                rendered.tokens(start, end).start,
                rendered.tokens(*content).start,
                rendered.tokens(*content).stop,
                rendered.tokens(start, end).stop,
                content,
                sum(turn.merged for turn in chat[: last + 1]),
            )
            for (index, start, content, end), last in zip(places, furthest, strict=True)
        )
        return RenderedPrompt(text, token_ids, starts, spans)

    def _apply(
        self, chat: list[TemplateMessage], generate: bool, tools: Sequence[dict[str, Any]] | None
    ) -> str:
        open_turn = generate and chat[-1]["role"] == "assistant"
        text = self.tokenizer.apply_chat_template(
            chat,
            tools=list(tools) if tools else None,
            chat_template=self.chat_template,
            tokenize=False,
            add_generation_prompt=generate and not open_turn,
            continue_final_message=open_turn,
            **self._template_kwargs,
        )
        return str(text)

    def _try(
        self,
        messages: list[ChatMessage],
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        return self._apply(
            [TemplateMessage(**message) for message in messages], add_generation_prompt, tools
        )

    def _turn(self, message: Message, shows_calls: bool) -> TemplateMessage:
        turn = TemplateMessage(role=message.role, content=message.text)
        turn.origin = message.role
        if message.tool_calls and shows_calls:
            turn["tool_calls"] = [
                {
                    "type": "function",
                    "id": short_id(call.id),
                    "function": {
                        "name": call.name,
                        "arguments": json.dumps(call.args, ensure_ascii=False)
                        if self.tools.arguments_as_text
                        else call.args,
                    },
                }
                for call in message.tool_calls
            ]
        elif message.tool_calls:
            calls = self.tools.write(message.tool_calls)
            turn["content"] = "\n".join(filter(None, [message.text, calls]))
        if message.role == "tool" and not self.tools.shows_tool_results:
            turn.update(role="user", content=tool_result_text(message))
        elif message.role == "tool":
            turn["tool_call_id"] = short_id(message.tool_call_id)
            turn["name"] = message.name
        return turn

    def _learn_turns(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return what the template writes before and after a user's and an assistant's content."""
        user, assistant = {"role": "user"}, {"role": "assistant"}
        placeholders = [_MARK.format(index) for index in range(4)]
        chat = [
            TemplateMessage(**turn, content=mark)
            for turn, mark in zip((user, assistant, user, assistant), placeholders, strict=True)
        ]
        try:
            # After the content of an opening user turn, and of a closing assistant turn.
            tail = {
                "user": self._apply(chat[:1], False, None).split(placeholders[0])[1],
                "assistant": self._apply(chat[:2], False, None).split(placeholders[1])[1],
            }
            glue = _split(self._apply(chat, False, None), placeholders)
        except (*_REFUSALS, IndexError) as error:
            raise PromptError(
                f"The chat template does not render a plain conversation: {error}"
            ) from error
        if glue is None:
            raise PromptError("The chat template does not show the messages it is given.")
        header = {
            "user": glue[2].removeprefix(tail["assistant"]),
            "assistant": glue[1].removeprefix(tail["user"]),
        }
        return header, tail

    def _locate(
        self,
        chat: list[TemplateMessage],
        text: str,
        generate: bool,
        tools: Sequence[dict[str, Any]] | None,
    ) -> list[tuple[int, int, tuple[int, int], int]]:
        """Return index and characters of each message: its start, its content, its end."""
        contents = self._contents(chat, text, generate, tools)
        places: list[tuple[int, int, tuple[int, int], int]] = []
        starts = [
            self._turn_start(
                chat[index]["role"],
                chat[contents[number - 1][0]]["role"] if number else None,
                text[contents[number - 1][2] if number else 0 : begin],
                begin,
            )
            for number, (index, begin, _) in enumerate(contents)
        ]
        for number, (index, begin, end) in enumerate(contents):
            role = chat[index]["role"]
            if number + 1 < len(contents):
                turn_end = starts[number + 1]
            else:
                tail = self._tail.get(role, "")
                turn_end = end + len(tail) if text.startswith(tail, end) else end
            places.append((index, starts[number], (begin, end), turn_end))
        return places

    def _contents(
        self,
        chat: list[TemplateMessage],
        text: str,
        generate: bool,
        tools: Sequence[dict[str, Any]] | None,
    ) -> list[tuple[int, int, int]]:
        """Return index, begin and end of each content, in characters of the rendered text.

        The same conversation is rendered with a mark in place of each content: what stands between
        the marks stands between the contents, also where the template rewrites a content (drops
        or wraps its reasoning, say).
        """
        placeholders = {
            index: _MARK.format(index) for index, turn in enumerate(chat) if turn["content"].strip()
        }
        marked = [
            TemplateMessage(turn, content=placeholders.get(index, ""))
            for index, turn in enumerate(chat)
        ]
        try:
            rest = self._apply(marked, generate, tools)
        except _REFUSALS as error:
            raise PromptError(f"The chat template reads what messages say: {error}") from error
        # Some show the system message in the last turn (Mistral).
        found = {index: rest.find(mark) for index, mark in placeholders.items()}
        shown = sorted((index for index in found if found[index] >= 0), key=lambda one: found[one])
        glue: list[str] = []
        for index in shown:
            before, _, rest = rest.partition(placeholders[index])
            glue.append(before)
        # Some show no text beside calls (Llama 3.1), which are shown then.
        said = (
            index
            for index in placeholders
            if chat[index]["role"] == "assistant" and not chat[index].get("tool_calls")
        )
        last = max(said, default=None)
        if last is not None and last not in shown:
            raise PromptError("The chat template does not show the last response.")
        glue.append(rest)
        contents: list[tuple[int, int, int]] = []
        position = 0
        for number, index in enumerate(shown):
            # Templates that wrap reasoning write less before it than before a plain answer.
            begin = position + common_length(glue[number], text[position:])
            end = self._content_end(
                chat[index], text, begin, glue[number + 1], number + 1 == len(shown)
            )
            contents.append((index, begin, end))
            position = end
        return contents

    def _content_end(
        self, turn: ChatMessage, text: str, begin: int, after: str, is_last: bool
    ) -> int:
        content = turn["content"]
        for form in (content, content.strip(), content.rstrip(), content.lstrip()):
            if text.startswith(form, begin):
                return begin + len(form)
        if is_last and text.endswith(after):
            return max(begin, len(text) - len(after))
        for mark in (after, self._tail.get(turn["role"], "")):
            end = text.find(mark, begin) if mark else -1
            if end >= 0:
                return end
        raise PromptError(
            "The chat template rewrites messages so that they cannot be found in what it renders; "
            "pass another chat_template."
        )

    def _turn_start(self, role: str, before: str | None, glue: str, begin: int) -> int:
        """Return where a turn begins, given the text between the last content and its own."""
        header = self._header.get(role)
        if header and glue.endswith(header):
            return begin - len(header)
        tail = self._tail.get(before or "")
        if tail and glue.startswith(tail):
            return begin - len(glue) + len(tail)
        # First turn of a kind whose header is unknown: all of it belongs to this turn, unless
        # another text (a system prompt merged into the user's turn) stands between.
        return begin - len(glue) if role == "system" and before is None else begin


def _split(text: str, placeholders: Iterable[str]) -> list[str] | None:
    """Return the text between the marks, or None if one is missing."""
    pieces = []
    for mark in placeholders:
        before, found, text = text.partition(mark)
        if not found:
            return None
        pieces.append(before)
    return [*pieces, text]


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return ids of special tokens: a tokenizer names some, and flags others."""
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    added = tokenizer.added_tokens_decoder.items()
    return {**{token.content: index for index, token in added if token.special}, **named}
