"""Values that can be written as JSON, stored in any database, and read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

_MAX_DEPTH = 100
"""Levels of nested JSON; beyond some 200, parsers refuse to read what was written."""
_MAX_BITS = 13_000
"""Of an integer, some 3,900 digits; Python reads no more than 4,300."""


class StorableModel(BaseModel):
    """An immutable pydantic model whose fields are made storable."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    @model_validator(mode="before")
    @classmethod
    def _make_storable(cls, fields: Any) -> Any:
        return storable(fields)


def storable(value: Any, depth: int = 0) -> Any:
    """Return a value without lone surrogates.

    Models and JSON can hold halves of a UTF-16 pair, but no file or database can. They are
    replaced.

    Args:
        value: The value.
        depth: Levels that it will be nested in.

    Raises:
        ValueError: It is nested too deep, or holds an integer of too many digits.
    """
    if isinstance(value, str):
        return _without_surrogates(value)
    if depth > _MAX_DEPTH:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep")
    if isinstance(value, Mapping):
        return {storable(key, depth + 1): storable(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(storable(item, depth + 1) for item in value)
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise ValueError("an integer has too many digits")
    return value


def _without_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def describe(error: ValidationError) -> str:
    """Return what is wrong, without the input values: traces must not leak into logs."""
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or 'trace'}: {item['msg']}" for item in error.errors()
    )
