from __future__ import annotations

import socket
import time
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from llguidance import LLMatcher
from pydantic import BaseModel, Field

from lag_integrations.engine.tools import HERMES, ToolFormat
from lag_integrations.engine.tools.json_format import GRANITE, LLAMA
from lag_integrations.engine.tools.schema import misfit
from lag_integrations.engine.tools.values import read_value


class Point(BaseModel):
    """A point."""

    x: float = Field(description="Right.")
    title: str = "none"


class Node(BaseModel):
    value: Point
    children: list[Node] = []


def tool(name: str, parameters: Any = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def accepts(schema: dict[str, Any], name: str, args: Any) -> bool:
    Draft202012Validator.check_schema(schema)
    assert not LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(schema))
    return bool(Draft202012Validator(schema).is_valid({"name": name, "arguments": args}))


def schema_of(tools: list[dict[str, Any]], form: ToolFormat = HERMES) -> dict[str, Any]:
    ((_, schema),) = form.forms(tools).calls
    return schema


NOTHING: list[Any] = [None, {}, {"type": "object"}, {"type": "object", "properties": {}}]


@pytest.mark.parametrize("parameters", NOTHING)
def test_a_tool_without_parameters_takes_none(parameters: Any) -> None:
    schema = schema_of([tool("now", parameters)])

    assert accepts(schema, "now", {})
    assert not accepts(schema, "now", {"a": 1})
    assert not accepts(schema, "then", {})


def test_one_of_several_tools_with_its_own_arguments() -> None:
    schema = schema_of(
        [
            tool("point", Point.model_json_schema()),
            tool("tree", Node.model_json_schema()),
            tool('größe "x" 🙂', {"type": "object", "properties": {"ä": {"type": "integer"}}}),
        ]
    )

    assert accepts(schema, "point", {"x": 1.5, "title": "t"})
    assert not accepts(schema, "point", {"x": 1.5, "y": 2})
    assert not accepts(schema, "point", {})
    tree = {"value": {"x": 1}, "children": [{"value": {"x": 2}, "children": []}]}
    assert accepts(schema, "tree", tree)
    assert not accepts(schema, "tree", {"value": {"x": 1}, "children": [{"value": 2}]})
    assert not accepts(schema, "tree", {"value": {"x": 1, "y": 2}})
    assert accepts(schema, 'größe "x" 🙂', {"ä": 1})


def test_same_names_of_definitions_do_not_collide() -> None:
    def with_item(kind: str) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {"item": {"$ref": "#/$defs/Item"}},
            "required": ["item"],
            "$defs": {"Item": {"type": kind}},
        }

    schema = schema_of([tool("a", with_item("string")), tool("b", with_item("integer"))])

    assert accepts(schema, "a", {"item": "x"})
    assert accepts(schema, "b", {"item": 1})
    assert not accepts(schema, "b", {"item": "x"})


def test_old_definitions_and_references_to_the_root() -> None:
    parameters = {
        "type": "object",
        "properties": {"next": {"$ref": "#"}, "n": {"$ref": "#/definitions/N"}},
        "definitions": {"N": {"type": "integer"}},
    }
    schema = schema_of([tool("a", parameters)])

    assert accepts(schema, "a", {"next": {"next": {"n": 1}}})
    assert not accepts(schema, "a", {"next": {"n": "x"}})


def test_descriptions_go_but_arguments_of_that_name_stay() -> None:
    parameters = {
        "type": "object",
        "description": "All.",
        "properties": {
            "description": {"type": "string", "description": "What it is."},
            "title": {"enum": [{"title": "a"}], "default": {"title": "a"}},
        },
    }
    schema = schema_of([tool("a", parameters)])

    assert "What it is." not in str(schema)
    assert accepts(schema, "a", {"description": "x", "title": {"title": "a"}})


def test_objects_are_closed_unless_they_say_otherwise() -> None:
    parts = [{"properties": {"a": {"type": "integer"}}}, {"properties": {"b": {"type": "integer"}}}]
    schema = schema_of(
        [
            tool("open", {"type": "object", "properties": {}, "additionalProperties": True}),
            tool(
                "all", {"type": "object", "properties": {"m": {"type": "object", "allOf": parts}}}
            ),
        ]
    )

    assert accepts(schema, "open", {"any": 1})
    assert accepts(schema, "all", {"m": {"a": 1, "b": 2}})


def test_the_tools_schema_is_left_as_it_was() -> None:
    parameters = Node.model_json_schema()
    before = str(parameters)
    schema_of([tool("a", parameters)])

    assert str(parameters) == before


def test_keys_and_lists_of_the_format() -> None:
    listed = schema_of([tool("tree", Node.model_json_schema())], GRANITE)
    call = {"name": "tree", "arguments": {"value": {"x": 1}}}
    validator = Draft202012Validator(listed)

    assert validator.is_valid([call])
    assert not validator.is_valid([])
    assert not validator.is_valid([call, call])
    assert schema_of([tool("now")], LLAMA)["required"] == ["name", "parameters"]


def test_no_reference_of_a_tools_schema_is_fetched() -> None:
    """Tools may come from a server: what their schemas name, they must not reach by us."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/schema.json"
        assert misfit({"at": 1}, {"properties": {"at": {"$ref": address}}}) is None
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_pattern_of_a_tools_schema_takes_no_time() -> None:
    slow = {"type": "string", "pattern": "^(a+)+$"}
    schema = {
        "properties": {"text": slow, "pattern": {"type": "integer"}},
        "patternProperties": {"^(b+)+$": slow},
    }
    begun = time.process_time()
    assert misfit({"text": "a" * 40 + "!", "pattern": 1}, schema) is None
    assert misfit({"b" * 40 + "!": "c"}, schema) is None
    assert time.process_time() - begun < 1
    assert misfit({"pattern": "x"}, schema) is not None  # the name of an argument


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"$ref": "#/$defs/Zip"}, "10115"),
        ({"allOf": [{"$ref": "#/$defs/Zip"}]}, "10115"),
        ({"anyOf": [{"$ref": "#/$defs/Zip"}, {"type": "null"}]}, "10115"),
        ({"$ref": "#/$defs/Count"}, 10115),
        ({"$ref": "#/$defs/Circle"}, 10115),
        ({"$ref": "#/$defs/None"}, 10115),
        ({"$ref": "http://127.0.0.1/x"}, 10115),
    ],
)
def test_text_becomes_what_a_reference_of_the_schema_wants(schema: Any, value: Any) -> None:
    parameters = {
        "properties": {"zip": schema},
        "$defs": {
            "Zip": {"type": "string"},
            "Count": {"type": "integer"},
            "Circle": {"$ref": "#/$defs/Circle"},
        },
    }
    assert read_value("10115", "find", "zip", [tool("find", parameters)]) == value
