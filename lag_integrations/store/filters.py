"""Metadata filters, in Chroma's ``where`` language, as conditions on the ledger.

The ledger is asked, not the index: a filtered Chroma query reads every entry (25 times as long at
20,000 logs), and the ledger decides anyhow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, and_, not_, or_, select
from sqlalchemy.sql.elements import Grouping

from lag_integrations.errors import StoreError
from lag_integrations.store.lesson_links import is_lesson
from lag_integrations.store.schema import logs, tags
from lag_integrations.store.tags import BOOLEAN, Scalar, encode_scalar, plain

Where = Mapping[str, Any]

_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "$eq": lambda column, value: column == value,
    "$gt": lambda column, value: column > value,
    "$gte": lambda column, value: column >= value,
    "$lt": lambda column, value: column < value,
    "$lte": lambda column, value: column <= value,
}
_BOOLEANS = (f"{BOOLEAN}true", f"{BOOLEAN}false")
_MAX_CLAUSES, _MAX_LEVELS, _MAX_VALUES = 200, 20, 10_000
_MAX_CACHED = 10


def condition(where: Where) -> ColumnElement[bool]:
    """Return the condition on ``logs`` that a filter stands for.

    A filter may have 200 conditions in 20 levels, and 10,000 values in a list.

    Args:
        where: ``{"key": value}``, or ``{"key": {"$gt": 3}}`` with ``$eq $ne $gt $gte $lt $lte $in
            $nin``; several keys must all hold; ``{"$and": […]}`` and ``{"$or": […]}`` combine.
            Values are text, numbers or booleans. A list in the metadata fits if one of its items
            does. ``{"sources": "…"}`` asks for a document, or a piece of one, that a run was shown.
            As in Chroma, ``$ne`` and ``$nin`` hold where the key is missing, but for lessons: these
            lack what their sources differ in.

    Raises:
        StoreError: The filter is malformed.
    """
    limits = _Limits()
    made = _condition(where, limits)
    return made if limits.clauses >= _MAX_CLAUSES - _MAX_CACHED else _Large(made)


class _Large(Grouping[bool]):
    """A filter of many conditions, whose statement SQLAlchemy does not cache.

    It caches some 700 compiled statements, which take 9 KB for each condition.
    """

    inherit_cache = False


class _Limits:
    """What a filter may still contain: databases refuse expressions of some 1,000 levels."""

    def __init__(self) -> None:
        self.clauses = _MAX_CLAUSES
        self.levels = _MAX_LEVELS


def _condition(where: Where, limits: _Limits) -> ColumnElement[bool]:
    if not isinstance(where, Mapping) or not where:
        raise _malformed(where, "it must be a mapping that is not empty")
    return and_(*(_clause(key, value, limits) for key, value in where.items()))


def _clause(key: str, value: Any, limits: _Limits) -> ColumnElement[bool]:
    limits.clauses -= 1
    if limits.clauses < 0:
        raise _malformed(
            key, f"it has more than {_MAX_CLAUSES} conditions; for many values of one key, use $in"
        )
    if key in ("$and", "$or"):
        if not isinstance(value, Iterable) or isinstance(value, str | Mapping) or not value:
            raise _malformed(value, f"{key} needs a list of filters")
        limits.levels -= 1
        if limits.levels < 0:
            raise _malformed(key, f"it has more than {_MAX_LEVELS} levels")
        parts = [_condition(part, limits) for part in value]
        limits.levels += 1
        return and_(*parts) if key == "$and" else or_(*parts)
    if not isinstance(key, str) or key.startswith("$"):
        raise _malformed(key, "it is no key and none of $and, $or")
    if not isinstance(value, Mapping):
        return _has(key, "$eq", value)
    if not value:
        raise _malformed(value, f"no operator is given for {key!r}")
    return and_(*(_operator(key, name, operand) for name, operand in value.items()))


def _operator(key: str, name: str, operand: Any) -> ColumnElement[bool]:
    if name in _COMPARISONS:
        return _has(key, name, operand)
    if name == "$ne":
        return _unless(_has(key, "$eq", operand), key)
    if name in ("$in", "$nin"):
        if not isinstance(operand, list | tuple | set | frozenset) or not operand:
            raise _malformed(operand, f"{name} needs a list of values")
        if len(operand) > _MAX_VALUES:
            raise _malformed(name, f"it has more than {_MAX_VALUES:,} values")
        found = _has_any(key, operand)
        return found if name == "$in" else _unless(found, key)
    known = ", ".join([*_COMPARISONS, "$ne", "$in", "$nin"])
    raise _malformed(name, f"known operators are {known}")


def _has(key: str, name: str, value: Any) -> ColumnElement[bool]:
    text, number = _operand(value)
    compare = _COMPARISONS[name]
    if isinstance(value, bool) and name != "$eq":
        raise _malformed(value, f"booleans have no order, which {name} asks for")
    fits = compare(tags.c.text, text) if number is None else compare(tags.c.number, number)
    if number is None and name != "$eq":  # text; booleans have no order
        fits = and_(fits, tags.c.text.not_in(_BOOLEANS))
    return logs.c.id.in_(select(tags.c.log_id).where(tags.c.key == plain(key), fits))


def _unless(found: ColumnElement[bool], key: str) -> ColumnElement[bool]:
    """Return the condition that a log has no such value, or, of a lesson, another one."""
    has_key = logs.c.id.in_(select(tags.c.log_id).where(tags.c.key == plain(key)))
    return and_(not_(found), or_(not_(is_lesson()), has_key))


def _has_any(key: str, values: Iterable[Any]) -> ColumnElement[bool]:
    operands = [_operand(value) for value in values]
    fits = or_(
        tags.c.text.in_([text for text, _ in operands if text is not None]),
        tags.c.number.in_([number for _, number in operands if number is not None]),
    )
    return logs.c.id.in_(select(tags.c.log_id).where(tags.c.key == plain(key), fits))


def _operand(value: Any) -> tuple[str | None, float | None]:
    """Return a value of a filter as text or number."""
    if not isinstance(value, Scalar):
        raise _malformed(value, "values are text, numbers or booleans")
    columns = encode_scalar(value)
    if columns is None:
        raise _malformed(value, "the number is too large")
    return columns


def _malformed(part: object, why: str) -> StoreError:
    try:
        shown = str(part)[:80]
    except (ValueError, RecursionError):  # no integers of over 4,300 digits, nothing deep
        shown = "…"
    return StoreError(f"The filter {shown!r} cannot be used: {why}.")
