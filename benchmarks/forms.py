"""Whether a small model's answers keep their form: ``python -m benchmarks.forms``.

200 objects by ``with_structured_output`` and 200 forced tool calls, over 40 schemas (nested, lists,
enums, unions, patterns, recursion, unicode) and 5 topics. An answer counts if it is JSON and
fits its schema, as ``jsonschema`` says.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

import jsonschema
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lag_integrations import packaged
from lag_integrations.engine.engine import Engine
from lag_integrations.evaluation.machine import stamp
from lag_integrations.langchain import LAGChatModel

Schema = dict[str, Any]

_TOPICS = (
    "Describe the lighthouse of Velmora, built in 1874 by Ada Krenn.",
    "Order three coffees and a slice of cake for table 12.",
    "The train from Zürich to Genève leaves at 9:32 from platform 7.",
    "東京の天気は晴れ、気温は25度です。",
    "Write as much as you can about everything that you know.",
)


def schemas() -> Iterator[Schema]:
    """Return 40 schemas, from one key to nested unions."""
    leaves: list[Schema] = [
        {"type": "string"},
        {"type": "integer", "minimum": 0, "maximum": 500},
        {"type": "number"},
        {"type": "boolean"},
        {"enum": ["small", "großartig", "小さい", "🙂"]},
        {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
        {"type": "string", "format": "date"},
        {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    ]
    names = ("name", "größe", "都市", "note", "x-1", "quo'te", "status", "day")
    for place, leaf in enumerate(leaves):
        following = leaves[(place + 1) % len(leaves)]
        name, other = names[place], names[(place + 1) % len(names)]
        yield _object({name: leaf})
        yield _object(
            {name: leaf, "details": _object({other: following, "inner": _object({"v": leaf})})}
        )
        yield _object(
            {"items": {"type": "array", "items": _object({name: leaf, other: following})}}
        )
        circle, square = ({"const": kind} for kind in ("circle", "square"))
        union = [
            _object({"kind": circle, name: leaf}),
            _object({"kind": square, other: following, "tags": {"type": "array", "items": leaf}}),
        ]
        yield _object({"shape": {"anyOf": union}, "count": {"type": "integer"}})
        node = _object(
            {name: leaf, "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}}}
        )
        yield {**_object({"root": {"$ref": "#/$defs/Node"}}), "$defs": {"Node": node}}


def _object(properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forms", description=__doc__)
    parser.add_argument("--model", help="hub id or folder; the packaged SmolLM2 by default")
    parser.add_argument("--max-tokens", type=int, default=120)
    parser.add_argument("--topics", type=int, default=len(_TOPICS), help="of 5; 40 answers each")
    arguments = parser.parse_args()
    model = LAGChatModel(
        Engine.load(packaged.resolve(arguments.model)),
        temperature=0,
        max_tokens=arguments.max_tokens,
    )
    table = Table("asked for", "answers", "valid", "ended early", "seconds an answer")
    table.title = "Answers that fit their schema"
    for way in ("structured output", "forced tool call"):
        valid = early = total = 0
        started = time.perf_counter()
        for schema in track(list(schemas()), description=way):
            for answer, cut in _ask(model, schema, way, _TOPICS[: arguments.topics]):
                total += 1
                early += cut
                valid += _fits(answer, schema)
        taken = (time.perf_counter() - started) / total
        print(f"{way}: {valid} of {total} valid, {early} ended early", flush=True)
        table.add_row(way, str(total), f"{100 * valid / total:.1f} %", str(early), f"{taken:.2f}")
    table.caption = (
        f"{stamp()} · at most {arguments.max_tokens} tokens; ended early: tokens ran out, so the "
        "shortest end followed"
    )
    Console().print(table)


def _ask(
    model: LAGChatModel, schema: Schema, way: str, topics: tuple[str, ...]
) -> Iterator[tuple[Any, bool]]:
    """Return what was answered, and whether the tokens ran out."""
    if way == "forced tool call":
        function = {"name": "erfassen_記録", "description": "Record it.", "parameters": schema}
        bound = model.bind_tools([{"type": "function", "function": function}], tool_choice="any")
    else:
        named = {"name": "record", "schema": schema}
        bound = model.bind(response_format={"type": "json_schema", "json_schema": named})
    for message in bound.batch(list(topics)):
        cut = message.response_metadata["finish_reason"] == "length"
        calls = [call["args"] for call in message.tool_calls]
        yield (calls[0] if calls else message.content), cut


def _fits(answer: Any, schema: Schema) -> bool:
    try:
        found = json.loads(answer) if isinstance(answer, str) else answer
        jsonschema.validate(found, schema, format_checker=jsonschema.FormatChecker())
    except (json.JSONDecodeError, jsonschema.ValidationError):
        return False
    return True


if __name__ == "__main__":
    main()
