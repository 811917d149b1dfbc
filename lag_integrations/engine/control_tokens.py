"""What people, tools and documents say never becomes a control token.

Tokenizers turn ``<|im_end|>`` into the token that ends a turn, whoever wrote it: a web page could
end the user's turn and begin one of the system. Here such text stays text. A character that nobody
uses is put into it before the template is rendered, and taken out afterwards; where it stood, no
token may stand across. The template's own tokens stay what they are.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lag_integrations.errors import PromptError
from lag_integrations.traces.message import Message, ToolCall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKED = re.compile(r"<[|｜].+[|｜]>")  # noqa: RUF001
"""How tokens look that are never meant as text, special or not: ``<|fim_prefix|>``."""
_PRIVATE = range(0xE000, 0xF8FF)
"""Characters that Unicode leaves to private use: one of them marks a text."""
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")
"""How a template that writes JSON in ASCII writes one."""


@dataclass(frozen=True)
class Cut:
    """A rendered text without marks, and where these stood.

    Attributes:
        text: The text.
        places: Characters before which a token must end, ascending.
    """

    text: str
    places: tuple[int, ...]


class ControlTokens:
    """The control tokens of a tokenizer, as text.

    Args:
        tokenizer: A fast tokenizer.
        template: Its chat template: an added token that stands in it is a control token, too,
            special or not.
        own: Those that an assistant's text may hold, as the marks of its thoughts.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: str, own: Collection[str]
    ) -> None:
        self._tokenizer = tokenizer
        added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
        control = [
            text
            for text, special in added.items()
            if len(text) > 1
            and text.strip()
            and (special or text in template or _MARKED.fullmatch(text))
        ]
        self._all = _Finder(control, tokenizer)
        self._foreign = _Finder([text for text in control if text not in own], tokenizer)
        self._added = frozenset(tokenizer.added_tokens_decoder)

    def mark_for(self, messages: Sequence[Message], tools: Any) -> str | None:
        """Return a character for `marked`; None if nothing has to be marked.

        Raises:
            PromptError: All characters that could be used stand in the conversation.
        """
        said = [text for message in messages for text in _texts(message)]
        said += list(_strings(tools))
        if not any(self._all.starts(text) for text in said):
            return None
        used = set().union(*said)
        escaped = {found.lower() for text in said for found in _ESCAPED.findall(text)}
        for code in _PRIVATE:
            if chr(code) not in used and f"{code:04x}" not in escaped:
                return chr(code)
        raise PromptError("The conversation uses every private character of Unicode; remove one.")

    def marked(self, message: Message, mark: str) -> Message:
        """Return a message with a mark in all that looks like a control token."""
        finder = self._foreign if message.role in ("assistant", "system") else self._all
        calls = [
            ToolCall(
                name=_marked(call.name, self._all, mark),
                args=_marked(call.args, self._all, mark),
                id=call.id,
            )
            for call in message.tool_calls
        ]
        return message.model_copy(
            update={
                "content": _marked(message.text, finder, mark),
                "tool_calls": tuple(calls),
                "name": message.name and _marked(message.name, self._all, mark),
            }
        )

    def marked_tools(self, tools: Sequence[dict[str, Any]], mark: str) -> list[dict[str, Any]]:
        """Return tool schemas likewise."""
        return [_marked(tool, self._all, mark) for tool in tools]

    @staticmethod
    def cut(text: str, mark: str) -> Cut:
        """Take the marks out of a rendered text."""
        # Some templates write JSON in ASCII.
        pieces = re.split(f"{mark}|\\\\u{ord(mark):04x}", text)
        places, length = [], 0
        for piece in pieces[:-1]:
            length += len(piece)
            places.append(length)
        return Cut("".join(pieces), tuple(places))

    def tokens(self, cut: Cut) -> tuple[list[int], list[int]]:
        """Return the tokens of a text, none of which stands across a cut, and where each begins."""
        encoding = self._tokenizer(cut.text, add_special_tokens=False, return_offsets_mapping=True)
        token_ids: list[int] = []
        starts: list[int] = []
        places = iter((*cut.places, len(cut.text) + 1))
        place = next(places)
        for token, (start, end) in zip(
            encoding["input_ids"], encoding["offset_mapping"], strict=True
        ):
            inside = []
            while place < end:
                if place > start:
                    inside.append(place)
                place = next(places)
            if not inside or token not in self._added:
                token_ids.append(token)
                starts.append(start)
                continue
            for begin, stop in zip((start, *inside), (*inside, end), strict=True):
                plain = self._plain(cut.text[begin:stop])
                token_ids += plain
                starts += [begin] * len(plain)
        return token_ids, starts

    def _plain(self, text: str) -> list[int]:
        """Return tokens of a text, none of them an added one."""
        found = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        if len(text) > 1 and not self._added.isdisjoint(found):
            return [token for character in text for token in self._plain(character)]
        return found


class _Finder:
    """Finds where control tokens begin in a text.

    Args:
        texts: The tokens.
        tokenizer: Their tokenizer.
    """

    def __init__(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        # The longest first, as tokenizers look for them.
        ordered = sorted(texts, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, ordered)) if ordered else r"(?!)")
        self._tokenizer = tokenizer
        # Such tokens are found in what a text is normalized to: ``<|IM_END|>`` in lower case.
        normalizes = tokenizer.backend_tokenizer.normalizer is not None
        wanted = frozenset(texts) if normalizes else frozenset()
        self._normalized = {
            index
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.normalized and token.content in wanted
        }

    def starts(self, text: str) -> list[int]:
        """Return where they begin, ascending."""
        found = {match.start() for match in self._pattern.finditer(text)}
        if self._normalized and text:
            read = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            for token, (start, _) in zip(read["input_ids"], read["offset_mapping"], strict=True):
                if token in self._normalized:
                    found.add(start)
        return sorted(found)


def _marked(value: Any, finder: _Finder, mark: str) -> Any:
    if isinstance(value, str):
        ends = [start + 1 for start in finder.starts(value)]
        return mark.join(value[a:b] for a, b in zip([0, *ends], [*ends, None], strict=True))
    if isinstance(value, Mapping):
        return {
            _marked(key, finder, mark): _marked(one, finder, mark) for key, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [_marked(one, finder, mark) for one in value]
    return value


def _texts(message: Message) -> Iterable[str]:
    yield message.text
    yield from _strings([[call.name, call.args] for call in message.tool_calls])
    yield message.name or ""


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _strings(key)
            yield from _strings(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _strings(one)
