"""Calls as JSON within text."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from lag_integrations.engine.tools.events import Block, InvalidCall
from lag_integrations.traces.message import ToolCall

NAME_KEYS = ("name", "tool_name", "function")
ARGS_KEYS = ("arguments", "parameters", "args")

_BRACKET = re.compile(r'[{}\[\]"]')
_IN_STRING = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_NAME = re.compile(r'"(?:tool_)?name"\s*:\s*("(?:[^"\\]|\\.)*")')
_ARGS = re.compile(rf'"(?:{"|".join(ARGS_KEYS)})"\s*:')
_CUT_AFTER_NAME = re.compile(r'\s*(?:,\s*(?:"\w*"?\s*)?)?$')
_SPACE = re.compile(r"\s*")
_FENCE = re.compile(r"```\w*\s*")
_DEEPEST = 90
_MOST_DIGITS = 3_900
"""Of an integer. A trace can hold neither longer ones nor a call whose JSON is nested deeper."""


def read_json(
    text: str,
    start: int,
    closers: Sequence[str],
    final: bool,
    *,
    is_marked: bool = True,
    names: Collection[str] = (),
) -> Block | None:
    """Read calls written as JSON: one object, several, or a list, perhaps fenced.

    Args:
        text: The text.
        start: Where the JSON begins, or white space before it.
        closers: What may follow, each at most once, in this order.
        final: The text is all there is.
        is_marked: The text says that this is a call. If not, JSON that is no call is text.
        names: Names of the tools that JSON without a mark may call; if there are none, any.
    """
    begin = after_fence(text, start, final)
    if begin is None:
        return None
    if begin < len(text) and text[begin] not in "{[":
        return broken(text, start, closers, final)
    begin = after_doubled(text, begin)
    calls: list[ToolCall | InvalidCall] = []
    position = begin
    while True:
        end = json_end(text, position)
        if end is None:
            if not final:
                return None
            if is_marked or _is_call_like(text[begin:], names):
                return broken(text, position, closers, final, calls)
            return Block(len(text), is_text=True)
        raw = text[position:end]
        try:
            value = load(raw)
        except ValueError as error:
            if not (is_marked or _is_call_like(raw, names)):
                return Block(end, is_text=True)
            # Quotes that do not match may have hidden where the call really ends.
            if any(closer in raw for closer in closers):
                return broken(text, position, closers, final, calls)
            calls.append(invalid_call(raw, reason_of(error)))
        else:
            if not (is_marked or is_call(value, names)):
                return Block(end, is_text=True)
            calls += [as_call(item) for item in (value if isinstance(value, list) else [value])]
        following = after_space(text, end)
        if not (is_marked and text.startswith("{", following) and raw.startswith("{")):
            break
        position = following
    fence = ["```"] if "```" in text[start:begin] else []
    # One brace too many is what small models write most.
    tails = ["}", *fence, *closers] if is_marked else [*fence, ";"]
    after = skip(text, end, tails, final)
    return None if after is None else Block(after, tuple(calls))


def after_doubled(text: str, start: int) -> int:
    """Return where JSON begins whose first brace is doubled; else the start.

    Qwen2.5-Coder's template shows ``{{"name": …}}``, as meant for Python's ``format``, and the
    model writes that. No JSON object begins with two braces.
    """
    return start + text.startswith("{{", start)


def read_named(
    text: str, start: int, name: re.Pattern[str], closers: Sequence[str], again: str, final: bool
) -> Block | None:
    """Read a call whose name stands before the JSON object of its arguments.

    Args:
        text: The text.
        start: After what begins the call.
        name: Matches up to the name, its group. What else stands before the arguments is not
            looked at: models vary it.
        closers: What may follow, each at most once, in this order.
        again: What begins another call.
        final: The text is all there is.
    """
    brace = text.find("{", start)
    head = text[start : brace if brace >= 0 else len(text)]
    ends = [(at + len(mark), at) for mark in closers if (at := head.find(mark)) >= 0]
    if (at := head.find(again)) >= 0:
        ends.append((at, at))
    if ends:
        end, at = min(ends)
        error = "The call has no arguments; write {} for none."
        return Block(start + end, (InvalidCall(None, head[:at].strip(), error),))
    if brace < 0:
        return broken(text, start, (), final)
    found = name.match(head)
    return _read_arguments(text, brace, found.group(1) if found else "", closers, final)


def _read_arguments(
    text: str, start: int, name: str, closers: Sequence[str], final: bool
) -> Block | None:
    end = json_end(text, start)
    if end is None:
        return broken(text, start, closers, final, name=name) if final else None
    raw = text[start:end]
    call: ToolCall | InvalidCall
    try:
        call = as_call({"name": name, "arguments": load(raw)})
    except ValueError as error:
        if any(closer in raw for closer in closers):
            return broken(text, start, closers, final, name=name)
        call = InvalidCall(name or None, raw, reason_of(error))
    after = skip(text, end, closers, final)
    return None if after is None else Block(after, (call,))


def broken(
    text: str,
    start: int,
    closers: Sequence[str],
    final: bool,
    calls: Sequence[ToolCall | InvalidCall] = (),
    name: str | None = None,
) -> Block | None:
    """Return a call that cannot be read, after those that can: up to its closer, or to the end."""
    ends = [(at + len(closer), at) for closer in closers if (at := text.find(closer, start)) >= 0]
    if not ends and not final:
        return None
    end, at = min(ends, default=(len(text), len(text)))
    raw = text[start:at].strip()
    error = "The call is not written as it should be." if ends else "The call is cut off."
    if ends and raw[:1] in ("{", "["):
        try:
            load(raw)
        except ValueError as reason:
            error = reason_of(reason)
    return Block(end, (*calls, invalid_call(raw, error, name)))


def skip(text: str, position: int, parts: Sequence[str], final: bool) -> int | None:
    """Skip the parts that follow, each at most once, in this order; None if it cannot be told."""
    for part in parts:
        begin = after_space(text, position)
        if text.startswith(part, begin):
            position = begin + len(part)
        elif part.startswith(text[begin:]):
            return len(text) if final else None
    return position


def json_end(text: str, start: int) -> int | None:
    """Return where the brackets that open at ``start`` are closed, if they are."""
    return next((end for end, depth in _depths(text, start) if depth == 0), None)


def _depths(text: str, start: int) -> Iterator[tuple[int, int]]:
    """Yield for each bracket outside of strings where it ends, and how many are open then."""
    depth = 0
    while bracket := _BRACKET.search(text, start):
        start = bracket.end()
        if bracket.group() != '"':
            depth += 1 if bracket.group() in "{[" else -1
            yield start, depth
        elif inside := _IN_STRING.match(text, start):
            if not text.startswith('"', inside.end()):
                return
            start = inside.end() + 1


def load(raw: str) -> Any:
    """Load JSON as models write it: line breaks within strings are let pass.

    Raises:
        ValueError: It is not JSON, or no trace could hold it.
    """
    if any(depth > _DEEPEST for _, depth in _depths(raw, 0)):
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


def after_fence(text: str, start: int, final: bool) -> int | None:
    """Skip the white space and the fence at a place, if any; None if it cannot be told."""
    begin = after_space(text, start)
    if not final and "```".startswith(text[begin:]):
        return None
    fence = _FENCE.match(text, begin)
    if fence is None:
        return begin
    return None if fence.end() == len(text) and not final else fence.end()


def after_space(text: str, position: int) -> int:
    """Skip the white space at a place, if any."""
    space = _SPACE.match(text, position)
    return space.end() if space else position


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
