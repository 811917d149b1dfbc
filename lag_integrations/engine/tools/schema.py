"""JSON schemas of calls, from the schemas of the tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]


@dataclass(frozen=True)
class CallForms:
    """How calls are written: JSON values, and the texts around them.

    Attributes:
        opening: Stands before the first call.
        calls: The calls there may be: each the text before its JSON, and the JSON's schema.
        closing: Stands after the last call.
        between: Stands between two calls; None if there may be only one.
    """

    opening: str
    calls: tuple[tuple[str, Schema], ...]
    closing: str
    between: str | None = None


_ANNOTATIONS = {"$schema", "$id", "$comment", "title", "description", "default", "examples"}
_ANNOTATIONS |= {"deprecated", "readOnly", "writeOnly", "discriminator"}
_MAPS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
_DATA = {"enum", "const", "required", "dependentRequired"}
_COMBINED = {"allOf", "anyOf", "oneOf", "$ref", "if"}


def call_schema(tools: Sequence[dict[str, Any]], name_key: str, args_key: str) -> Schema:
    """Return the schema of one call of one of the tools, as an object with name and arguments."""
    definitions: Schema = {}
    calls = []
    for index, tool in enumerate(tools):
        function = tool["function"]
        arguments = arguments_schema(function.get("parameters"))
        if _refers(arguments):
            # Its references are relative to its own root, so all of it moves, and they follow.
            definitions[str(index)] = _moved(arguments, f"#/$defs/{index}")
            arguments = {"$ref": f"#/$defs/{index}"}
        calls.append(
            {
                "type": "object",
                "properties": {name_key: {"const": function["name"]}, args_key: arguments},
                "required": [name_key, args_key],
                "additionalProperties": False,
            }
        )
    schema: Schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {**schema, "$defs": definitions} if definitions else schema


def named_calls(tools: Sequence[dict[str, Any]], middle: str) -> tuple[tuple[str, Schema], ...]:
    """Return calls with the name before the arguments, and a text between them."""
    functions = [tool["function"] for tool in tools]
    return tuple(
        (function["name"] + middle, arguments_schema(function.get("parameters")))
        for function in functions
    )


def arguments_schema(parameters: Schema | None) -> Schema:
    """Return the schema of a tool's arguments: an object, without annotations, and closed."""
    schema = _plain(parameters or {}, closed=True)
    if not schema.keys() & {"properties", "additionalProperties", *_COMBINED}:
        schema |= {"properties": {}, "additionalProperties": False}
    return {"type": "object", **schema}


def misfit(args: Any, parameters: Schema | None) -> str | None:
    """Return what is wrong with a call's arguments by the schema of its tool; None if they fit.

    The schema is that of `arguments_schema`, to which calls are held, too. It is foreign: no
    reference is fetched from elsewhere, and patterns, which may take for ever, are not compared.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match
    from referencing import Registry

    schema = _without_patterns(arguments_schema(parameters))
    try:
        validator = Draft202012Validator(schema, registry=Registry())
        error = best_match(validator.iter_errors(args))
    except Exception:  # A schema is foreign: whatever is wrong with it, the call is not.
        return None
    if error is None:
        return None
    path = error.json_path.removeprefix("$").removeprefix(".")
    place = f", at {path}" if path else ""
    return f"The arguments do not fit the tool's schema{place}: {error.message}."


def without_empty_options(args: Any, parameters: Schema | None) -> Any:
    """Return arguments without those that are null and may be left out.

    Models write null for an argument that they mean to leave out. One whose schema allows null is
    kept; so is one that has to be there.
    """
    if not isinstance(args, dict) or not isinstance(parameters, dict):
        return args
    required = parameters.get("required")
    needed = required if isinstance(required, list) else []
    properties = parameters.get("properties")
    known = properties if isinstance(properties, dict) else {}
    return {
        name: value
        for name, value in args.items()
        if value is not None
        or name in needed
        or name not in known
        or misfit({name: None}, {"properties": {name: known[name]}, **_definitions(parameters)})
        is None
    }


def _definitions(schema: Schema) -> Schema:
    return {key: schema[key] for key in ("$defs", "definitions") if key in schema}


def _plain(schema: Any, closed: bool) -> Any:
    if isinstance(schema, list):
        return [_plain(item, closed) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain: Schema = {}
    for key, value in schema.items():
        if key in _ANNOTATIONS:
            continue
        if key in _MAPS and isinstance(value, dict):
            plain[key] = {name: _plain(item, closed=True) for name, item in value.items()}
        elif key in _DATA:
            plain[key] = value
        else:
            # What all parts of an "allOf" allow together, none of them may close alone.
            plain[key] = _plain(value, closed=key != "allOf")
    if closed and "properties" in plain and not plain.keys() & _COMBINED:
        plain.setdefault("additionalProperties", False)
    return plain


def _without_patterns(schema: Any) -> Any:
    if isinstance(schema, list):
        return list(map(_without_patterns, schema))
    if not isinstance(schema, dict):
        return schema
    kept: Schema = {}
    for key, value in schema.items():
        if key in ("pattern", "patternProperties"):
            continue
        if key in _MAPS and isinstance(value, dict):
            kept[key] = {name: _without_patterns(item) for name, item in value.items()}
        else:
            kept[key] = value if key in _DATA else _without_patterns(value)
    if "patternProperties" in schema:
        kept.pop("additionalProperties", None)  # what these allow
    return kept


def _refers(schema: Any) -> bool:
    if isinstance(schema, list):
        return any(map(_refers, schema))
    if isinstance(schema, dict):
        return isinstance(schema.get("$ref"), str) or any(map(_refers, schema.values()))
    return False


def _moved(schema: Any, root: str) -> Any:
    if isinstance(schema, list):
        return [_moved(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: value if key in _DATA else _moved(value, root) for key, value in schema.items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference[1:]
    return moved
