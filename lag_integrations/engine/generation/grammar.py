"""Grammars of answers, in llguidance's Lark dialect: JSON, calls amid text, text without calls.

Grammars are plain text; `generation.constraint` compiles them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from lag_integrations.engine.generation.reasoning import CLOSE, OPEN
from lag_integrations.engine.tools.schema import CallForms, Schema

_OPTIONS = {
    # As models write it; free white space would let a small one write nothing else.
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    # Keywords that no grammar can say (uniqueItems) are left to whoever validates the answer.
    "lenient": True,
}


def json_answer(schema: Schema) -> str:
    """Write the grammar of a JSON value of this schema."""
    return f"start: {_json(schema)}\n"


def rest_of_call(forms: CallForms, special: SpecialTokens) -> str:
    """Write the grammar of one call: all of it between opening and closing."""
    return "\n".join(["start: one", *_calls(forms, special)]) + "\n"


def text_or_calls(forms: CallForms, special: SpecialTokens, *, thinking: bool = False) -> str:
    """Write the grammar of text in which each call that the model begins is one of these.

    Args:
        forms: The calls. The first mark of the opening, or else its first word, begins a call.
        special: The tokenizer's special tokens.
        thinking: The answer begins within a thought.
    """
    begin, rest = special.split(forms.opening)
    body = f"{special.literal(rest)} {_some(forms, special)} {special.literal(forms.closing)}"
    if begin in special.ids:
        call = f"call: said {special.literal(begin)} {body}\n"
    else:
        call = f"begun[lazy]: ANY {json.dumps(begin)}\ncall: said begun {body}\n"
    banned = set(special.within(forms.opening + (forms.between or "") + forms.closing))
    rules = [
        *_calls(forms, special),
        f"said: {special.text(banned)}",
        call,
        "answer: call* said",
        "TEXT: /(.|\\n)+/",
        "ANY: /(.|\\n)*/",
    ]
    # What looks like a call within a thought is none.
    thought = f"thought: {special.text({CLOSE})}"
    close, open_ = special.ids.get(CLOSE), special.ids.get(OPEN)
    if thinking and close is not None:
        return "\n".join([f"start: thought (<[{close}]> answer)?", thought, *rules]) + "\n"
    if close is not None and open_ is not None:
        started = f"<[{open_}]> thought (<[{close}]> answer)?"
        return "\n".join([f"start: answer | {started}", thought, *rules]) + "\n"
    return "\n".join(["start: answer", *rules]) + "\n"


def json_or_calls(forms: CallForms, answer: Schema, special: SpecialTokens, says: str = "") -> str:
    """Write the grammar of either calls, or JSON of a schema.

    Args:
        forms: The calls.
        answer: The schema.
        special: The tokenizer's special tokens.
        says: What stands before the JSON.
    """
    ends = special.literal(forms.opening), special.literal(forms.closing)
    rules = [
        "start: call | answer",
        f"call: {ends[0]} {_some(forms, special)} {ends[1]}",
        f"answer: {special.literal(says)} {_json(answer)}",
        *_calls(forms, special),
    ]
    return "\n".join(rules) + "\n"


def text_without(starts: Sequence[str], special: SpecialTokens) -> str:
    """Write the grammar of text in which no call begins."""
    banned = [_regex(start) for start in starts if not special.within(start)]
    none = f" & ~/(.|\\n)*({'|'.join(banned)})(.|\\n)*/" if banned else ""
    forbidden = {mark for start in starts for mark in special.within(start)}
    return f"start: said\nsaid: {special.text(forbidden)}\nTEXT: /(.|\\n)+/{none}\n"


def can_constrain() -> bool:
    """Return whether answers can be held to a grammar: whether llguidance is installed."""
    return find_spec("llguidance") is not None


@dataclass(frozen=True)
class SpecialTokens:
    """Tokens of a tokenizer that a grammar must name by their ids, since they are not text.

    Attributes:
        ids: The ids, by the tokens' text.
        spoken: Those that may stand within an answer's text.
    """

    ids: Mapping[str, int]
    spoken: frozenset[str] = frozenset()

    @classmethod
    def of(cls, added: Mapping[str, int], special: Collection[str]) -> SpecialTokens:
        """Find the special tokens of a tokenizer.

        Args:
            added: Ids of all its added tokens. Those in angle brackets are marks for llguidance,
                whether the tokenizer calls them special or not.
            special: The special ones among them.
        """
        ids = {
            token: index
            for token, index in added.items()
            if token in special or (token.startswith("<") and token.endswith(">"))
        }
        spoken = {token for token in ids if token not in special or token in (OPEN, CLOSE)}
        return cls(ids, frozenset(spoken))

    def text(self, banned: Collection[str]) -> str:
        """Write the grammar of some text with spoken special tokens in it, but for some."""
        allowed = [f"<[{self.ids[mark]}]>" for mark in sorted(self.spoken) if mark not in banned]
        # One piece between marks: two could hold the halves of what may not stand in one.
        return f"TEXT? (({' | '.join(allowed)}) TEXT?)*" if allowed else "TEXT?"

    def within(self, text: str) -> list[str]:
        """Return the special tokens in a text."""
        return [mark for mark in self.ids if mark in text]

    def split(self, opening: str) -> tuple[str, str]:
        """Split off a text's first special token, or what stands before white space or one."""
        prompt_items = self._pieces(opening.lstrip())
        first = prompt_items[0]
        if first not in self.ids:
            first = first.split()[0]
        return first, opening.lstrip()[len(first) :]

    def literal(self, text: str) -> str:
        """Write a text as grammar."""
        return " ".join(
            f"<[{self.ids[piece]}]>" if piece in self.ids else json.dumps(piece, ensure_ascii=False)
            for piece in self._pieces(text)
        )

    def _pieces(self, text: str) -> list[str]:
        if not self.ids or not text:
            return [text] if text else []
        # Of two marks at one place the longer is meant.
        longest = sorted(self.ids, key=len, reverse=True)
        prompt_items = re.split(f"({'|'.join(map(re.escape, longest))})", text)
        return [piece for piece in prompt_items if piece]


def _calls(forms: CallForms, special: SpecialTokens) -> list[str]:
    """Write the rules for one call: ``one``."""
    names = [f"one_{index}" for index in range(len(forms.calls))]
    bodies = [f"{special.literal(text)} {_json(schema)}" for text, schema in forms.calls]
    return [
        f"one: {' | '.join(names)}",
        *(f"{name}: {body}" for name, body in zip(names, bodies, strict=True)),
    ]


def _some(forms: CallForms, special: SpecialTokens) -> str:
    return "one" if forms.between is None else f"one ({special.literal(forms.between)} one)*"


def _json(schema: Schema) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': _OPTIONS})}"


def _regex(text: str) -> str:
    return "".join(c if c.isalnum() or not c.isascii() else f"\\x{ord(c):02x}" for c in text)
