"""Calls as JSON within text."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lag_integrations.engine.tools.events import Block, InvalidCall
from lag_integrations.engine.tools.held_text import SPACE, HeldText, Reading
from lag_integrations.traces.message import ToolCall

NAME_KEYS = ("name", "tool_name", "function")
ARGS_KEYS = ("arguments", "parameters", "args")

_BRACKET = r'[{}\[\]"]'
_NOT_JSON = re.compile(r'[^\s\w{}\[\]:,.+"-]')
"""What JSON has in strings only."""
_IN_STRING = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_NAME = re.compile(r'"(?:tool_)?name"\s*:\s*("(?:[^"\\]|\\.)*")')
_ARGS = re.compile(rf'"(?:{"|".join(ARGS_KEYS)})"\s*:')
_CUT_AFTER_NAME = re.compile(r'\s*(?:,\s*(?:"\w*"?\s*)?)?$')
_LANGUAGE = re.compile(r"\w*")
_DEEPEST = 90
_MOST_DIGITS = 3_900
"""Of an integer. A trace can hold neither longer ones nor a call whose JSON is nested deeper."""


def read_json(
    held: HeldText,
    start: int,
    closers: Sequence[str],
    *,
    is_marked: bool = True,
    names: Collection[str] = (),
) -> Reading[Block]:
    """Read calls written as JSON: one object, several, or a list, perhaps fenced.

    Args:
        held: The text.
        start: Where the JSON begins, or white space before it.
        closers: What may follow, each at most once, in this order.
        is_marked: The text says that this is a call. If not, JSON that is no call is text.
        names: Names of the tools that JSON without a mark may call; if there are none, any.
    """
    begin = yield from after_fence(held, start)
    if begin < len(held.text) and held.text[begin] not in "{[":
        return (yield from broken(held, start, closers))
    begin = yield from after_doubled(held, begin)
    calls: list[ToolCall | InvalidCall] = []
    position = begin
    while True:
        end = yield from json_end(held, position, closers)
        if end is None:
            if is_marked or _is_call_like(held.text[begin:], names):
                return (yield from broken(held, position, closers, calls))
            return Block(len(held.text), is_text=True)
        raw = held.text[position:end].rstrip()
        try:
            value = load(raw)
        except ValueError as error:
            if not (is_marked or _is_call_like(raw, names)):
                return Block(end, is_text=True)
            # Quotes that do not match may have hidden where the call really ends.
            if any(closer in raw for closer in closers):
                return (yield from broken(held, position, closers, calls))
            calls.append(invalid_call(raw, reason_of(error)))
        else:
            if not (is_marked or is_call(value, names)):
                return Block(end, is_text=True)
            calls += [as_call(item) for item in (value if isinstance(value, list) else [value])]
        following = yield from held.past(SPACE, end)
        if not (is_marked and held.text.startswith("{", following) and raw.startswith("{")):
            break
        position = following
    fence = ["```"] if "```" in held.text[start:begin] else []
    # One brace too many is what small models write most.
    tails = ["}", *fence, *closers] if is_marked else [*fence, ";"]
    return Block((yield from skip(held, end, tails)), tuple(calls))


def after_doubled(held: HeldText, start: int) -> Reading[int]:
    """Return where JSON begins whose first brace is doubled; else the start.

    Qwen2.5-Coder's template shows ``{{"name": …}}``, as meant for Python's ``format``, and the
    model writes that. No JSON object begins with two braces.
    """
    return start + ((yield from held.after("{{", start)) > start)


def read_named(
    held: HeldText, start: int, name: re.Pattern[str], closers: Sequence[str], again: str
) -> Reading[Block]:
    """Read a call whose name stands before the JSON object of its arguments.

    Args:
        held: The text.
        start: After what begins the call.
        name: Matches up to the name, its group. What else stands before the arguments is not
            looked at: models vary it.
        closers: What may follow, each at most once, in this order.
        again: What begins another call.
    """
    mark = yield from held.first_of(("{", *closers, again), start)
    if mark is None:
        return (yield from broken(held, start, ()))
    at, end = mark
    head, found = held.text[start:at], held.text[at:end]
    if found != "{":
        error = "The call has no arguments; write {} for none."
        return Block(at if found == again else end, (InvalidCall(None, head.strip(), error),))
    named = name.match(head)
    return (yield from _read_arguments(held, at, named.group(1) if named else "", closers))


def _read_arguments(
    held: HeldText, start: int, name: str, closers: Sequence[str]
) -> Reading[Block]:
    end = yield from json_end(held, start, closers)
    if end is None:
        return (yield from broken(held, start, closers, name=name))
    raw = held.text[start:end].rstrip()
    call: ToolCall | InvalidCall
    try:
        call = as_call({"name": name, "arguments": load(raw)})
    except ValueError as error:
        if any(closer in raw for closer in closers):
            return (yield from broken(held, start, closers, name=name))
        call = InvalidCall(name or None, raw, reason_of(error))
    return Block((yield from skip(held, end, closers)), (call,))


def broken(
    held: HeldText,
    start: int,
    closers: Sequence[str],
    calls: Sequence[ToolCall | InvalidCall] = (),
    name: str | None = None,
) -> Reading[Block]:
    """Return a call that cannot be read, after those that can: up to its closer, or to the end."""
    closer = yield from held.first_of(closers, start)
    at, end = closer or (len(held.text), len(held.text))
    raw = held.text[start:at].strip()
    error = "The call is not written as it should be." if closer else "The call is cut off."
    if closer and raw[:1] in ("{", "["):
        try:
            load(raw)
        except ValueError as reason:
            error = reason_of(reason)
    return Block(end, (*calls, invalid_call(raw, error, name)))


def skip(held: HeldText, position: int, parts: Sequence[str]) -> Reading[int]:
    """Skip the parts that follow, each at most once, in this order; the last may be cut off."""
    for part in parts:
        begin = yield from held.past(SPACE, position)
        end = yield from held.after(part, begin)
        if end > begin:
            position = end
        elif part.startswith(held.text[begin:]):
            return len(held.text)
    return position


def json_end(held: HeldText, start: int, closers: Sequence[str] = ()) -> Reading[int | None]:
    """Return where the brackets that open at ``start`` are closed, or a closer cuts them off.

    None if neither happens, or if what cannot be JSON has a closer in its strings: it ends there,
    see `broken`. Otherwise a call whose brackets are never closed would hold back all that follows,
    and many of them would each be read to the end.
    """
    brackets = _Brackets(start, [closer for closer in closers if _NOT_JSON.match(closer)])
    while True:
        for depth in brackets.depths(held.text):
            if depth == 0:
                return brackets.position
            if brackets.is_broken:
                return (yield from _broken_end(held, start, brackets, closers))
        if held.is_whole:
            return None
        yield


def _broken_end(
    held: HeldText, start: int, brackets: _Brackets, closers: Sequence[str]
) -> Reading[int | None]:
    """Return the same as `json_end` for what is known to be no JSON: look up to a closer only."""
    longest = max(map(len, closers), default=1)
    while True:
        closer = held.first_so_far(closers, start)
        for depth in brackets.depths(held.text[: closer[1]] if closer else held.text):
            if depth == 0:
                return brackets.position
        if closer or held.is_whole:
            return None
        start = max(start, len(held.text) - longest + 1)
        yield


@dataclass
class _Brackets:
    """Counts the brackets outside of strings; goes on where it stopped when a text has grown."""

    position: int
    closers: Sequence[str] = ()
    depth: int = 0
    in_string: bool = False
    is_broken: bool = False  # no JSON begins like this

    def __post_init__(self) -> None:
        marks = [_BRACKET, *map(re.escape, self.closers)]
        self._mark = re.compile("|".join(marks))
        self._mark_or_broken = re.compile("|".join([*marks, _NOT_JSON.pattern]))
        self._longest = max(map(len, self.closers), default=1)

    def depths(self, text: str) -> Iterator[int]:
        """Yield for each further bracket how many are open then; after a closer, none.

        Where it turns out that this is no JSON, how many are open is yielded, too.
        """
        while True:
            if self.in_string:
                if inside := _IN_STRING.match(text, self.position):
                    self.position = inside.end()
                if not text.startswith('"', self.position):
                    return
                self.position += 1
                self.in_string = False
            pattern = self._mark if self.is_broken else self._mark_or_broken
            found = pattern.search(text, self.position)
            if found is None:
                self.position = max(self.position, len(text) - self._longest + 1)
                return
            mark, self.position = found.group(), found.end()
            if mark == '"':
                self.in_string = True
            elif mark in self.closers:
                self.position = found.start()
                yield 0
            elif _NOT_JSON.match(mark):
                self.position = found.start()  # a closer may begin there
                self.is_broken = True
                yield self.depth
            else:
                self.depth += 1 if mark in "{[" else -1
                yield self.depth


def load(raw: str) -> Any:
    """Load JSON as models write it: line breaks within strings are let pass.

    Raises:
        ValueError: It is not JSON, or no trace could hold it.
    """
    if any(depth > _DEEPEST for depth in _Brackets(0).depths(raw)):
        raise ValueError(f"it is nested more than {_DEEPEST} deep")
    return json.loads(raw, strict=False, parse_int=_integer)


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError("an integer has too many digits")
    return int(digits)


def as_call(value: Any) -> ToolCall | InvalidCall:
    """Make a call of its JSON, under any of the usual keys."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict):
        return InvalidCall(None, written, "A call must be a JSON object with name and arguments.")
    name = next((value[key] for key in NAME_KEYS if value.get(key)), None)
    if not isinstance(name, str):
        return InvalidCall(None, written, "The call does not name a tool.")
    args = next((value[key] for key in ARGS_KEYS if key in value), None)
    if isinstance(args, str):
        try:
            args = load(args)
        except ValueError:
            return InvalidCall(name, args, "The arguments are a text that is not JSON.")
    if args is None:
        args = {}
    if not isinstance(args, dict):
        return InvalidCall(name, written, "The arguments must be a JSON object.")
    return ToolCall(name=name, args=args)


def after_fence(held: HeldText, start: int) -> Reading[int]:
    """Skip the white space and the fence at a place, if any."""
    begin = yield from held.past(SPACE, start)
    fence = yield from held.after("```", begin)
    if fence == begin:
        return begin
    return (yield from held.past(SPACE, (yield from held.past(_LANGUAGE, fence))))


def invalid_call(raw: str, error: str, name: str | None = None) -> InvalidCall:
    """Return a call that cannot be read, with its tool's name as far as that can be told."""
    found = _NAME.search(raw)
    if name is None and found:
        try:
            name = load(found.group(1)) or None
        except ValueError:
            name = None
    return InvalidCall(name, raw, error)


def reason_of(error: ValueError) -> str:
    """Return what is wrong with a call that is not JSON."""
    # A JSON error's text would name lines and columns of what only we have seen.
    if isinstance(error, json.JSONDecodeError):
        return f"The call is not valid JSON: {error.msg} at character {error.pos}."
    return f"The call is not valid JSON: {error}."


def is_call(value: Any, names: Collection[str] = ()) -> bool:
    """Return whether a JSON value holds a tool's name and arguments, under any of the usual keys.

    Args:
        value: The value; of a list, all must.
        names: The names that count; if there are none, any.
    """
    if isinstance(value, list):
        return bool(value) and all(is_call(item, names) for item in value)
    if not isinstance(value, dict):
        return False
    inner = value.get("function")
    named = inner if isinstance(inner, dict) else value
    name = next((named[key] for key in NAME_KEYS if named.get(key)), None)
    known = isinstance(name, str) and (not names or name in names)
    return known and any(key in named for key in ARGS_KEYS)


def _is_call_like(raw: str, names: Collection[str]) -> bool:
    """Tell whether broken JSON was to be a call: it has both keys, or breaks off after the name."""
    name = _NAME.search(raw)
    if name is None or (names and name.group(1)[1:-1] not in names):
        return False
    return bool(_ARGS.search(raw, name.end()) or _CUT_AFTER_NAME.match(raw, name.end()))
