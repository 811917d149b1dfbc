"""A LangGraph store whose items are logs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, get_args

from langchain_core.runnables import run_in_executor
from langgraph.store.base import (
    BaseStore,
    GetOp,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    get_text_at_path,
    validate_op_namespace,
)

from lag_integrations.errors import StoreError, TraceError
from lag_integrations.memory.memory import LogMemory
from lag_integrations.traces.reserved_metadata import NOT_RECALLED, PLACE
from lag_integrations.traces.trace import Outcome, Trace

_VALUE = "lag_value"
_KEY, _NAMESPACE, _WITHIN = "lag_key", "lag_namespace", "lag_within"
_MAX_CHARS = 500
"""Most characters of a namespace or key; longer metadata cannot be looked up."""
_FIRST_PAGE = 250
"""Extra logs that a search with query and filter fetches first; more if too few of them match."""
_MAX_RESULTS = 1_000_000
"""Most items that the pages of a search can reach."""
_Namespace = tuple[str, ...]


class LogBaseStore(BaseStore):
    """A LangGraph store over a memory: for ``create_agent(store=…)`` and `InjectedStore` tools.

    Every item is a log: its value is embedded by the memory's embedder, and its KV is recalled as
    that of other logs. A value with ``messages`` (chat dicts, with an answer) becomes that
    conversation; of any other value, the text becomes the last response. Logs that are not items
    are not visible here.

    A namespace of the store tells items apart here alone: a model or middleware that recalls from
    the memory is given items of all of them. For items of single users, take a memory (with a
    ``namespace=`` of its own) for each, or put them with ``index=False``.

    It behaves as `InMemoryStore`, with these differences:

    - A search without a query, or of what is not indexed, returns the newest first.
    - ``created_at`` is kept when an item is put again.
    - The fields that ``index=[…]`` names are searched together, by one vector.
    - An item put with ``index=False`` is never recalled, neither by a model.
    - Namespaces without items are not listed.
    - An item that the memory's screen puts in quarantine is not there until it is released.
    - Values must be JSON; a namespace (with its dots) and a key have 500 characters at most.
    - There is no ``ttl`` of single items (`NotImplementedError`); the memory's own ``ttl`` and
      budget hold for items, too.

    Args:
        memory: Where the items are kept.
    """

    supports_ttl = False

    def __init__(self, memory: LogMemory) -> None:
        self._memory = memory
        self._ledger = memory.store.ledger

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Run operations; all reads come before all writes, and the last put of a key wins.

        Raises:
            InvalidNamespaceError: A label of a namespace is empty, or has a dot.
            NotImplementedError: A put has a ttl.
            StoreError: A value is not JSON, a key too long, or the store fails.
        """
        ops = list(ops)
        for op in ops:
            validate_op_namespace(op)
        results = [self._read(op) for op in ops]
        puts = {(op.namespace, op.key): op for op in ops if isinstance(op, PutOp)}
        self._write(list(puts.values()))
        return results

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Run operations as `batch` does."""
        return await run_in_executor(None, self.batch, list(ops))

    def _read(self, op: Op) -> Result:
        if isinstance(op, GetOp):
            found = self._at(op.namespace, op.key, with_quarantine=False)
            items = (_item(log) for _, log in found)
            return next((item for item in items if item is not None), None)
        if isinstance(op, SearchOp):
            return self._search_by_query(op) if op.query else self._search(op)
        if isinstance(op, ListNamespacesOp):
            return self._namespaces(op)
        return None

    def _write(self, ops: Sequence[PutOp]) -> None:
        before = {(op.namespace, op.key): self._at(op.namespace, op.key) for op in ops}
        traces = []
        for op in ops:
            if op.value is not None:
                known = before[op.namespace, op.key]
                traces.append(_trace(op, known[0][1] if known else None))
        self._memory.add_own(traces)
        deleted, replaced = [], []
        for op in ops:
            ids = [key for key, _ in self._at(op.namespace, op.key)]
            if op.value is None:
                deleted += ids
            else:
                # Others may put it, too: the last to look sees all, and keeps the newest.
                replaced += ids[1:]
        if replaced:  # the worker removes what they have in index and segment files
            self._ledger.delete(replaced)
        if deleted:
            self._memory.delete(deleted)

    def _at(
        self, namespace: _Namespace, key: str, *, with_quarantine: bool = True
    ) -> list[tuple[str, Trace]]:
        """Return the logs of an item, newest first; it has several while it is replaced."""
        where = {_NAMESPACE: ".".join(namespace), _KEY: key}
        found = self._ledger.having(where, with_quarantine=with_quarantine)
        return sorted(found.items(), key=lambda log: (_updated_at(log[1]), log[0]), reverse=True)

    def _search(self, op: SearchOp) -> list[SearchItem]:
        end = min(op.offset + op.limit, _MAX_RESULTS)
        found = self._unscored(op, None if op.filter or end < 0 else end)
        return found[op.offset : op.offset + op.limit]

    def _search_by_query(self, op: SearchOp) -> list[SearchItem]:
        self._memory.embed_pending()  # so that what was put is found
        where = {_WITHIN: ".".join(op.namespace_prefix)}
        end = min(op.offset + op.limit, _MAX_RESULTS)
        k = end + _FIRST_PAGE if op.filter else end
        while True:
            logs = self._memory.recall(
                op.query or "",
                k=k,
                min_score=-1,
                where=where,
                outcomes=get_args(Outcome),
                diversity=0,
                unjudged_documents="any",
            )
            items = _items((log.trace, log.score) for log in logs)
            scored = _newest([item for item in items if _matches_filter(item.value, op.filter)])
            if len(scored) >= end or len(logs) < k:
                break
            k *= 8
        if len(scored) < end:  # add what is not indexed
            known = {(item.namespace, item.key) for item in scored}
            scored += [x for x in self._unscored(op) if (x.namespace, x.key) not in known]
        return scored[op.offset : end]

    def _unscored(self, op: SearchOp, limit: int | None = None) -> list[SearchItem]:
        where = {_WITHIN: ".".join(op.namespace_prefix)}
        logs = self._ledger.having(where, limit=limit, with_quarantine=False)
        newest = _newest(_items((log, None) for log in logs.values()))
        if limit is not None and len(newest) < len(logs):
            return self._unscored(op)
        return [item for item in newest if _matches_filter(item.value, op.filter)]

    def _namespaces(self, op: ListNamespacesOp) -> list[_Namespace]:
        names = self._ledger.values(_NAMESPACE)
        namespaces = [tuple(name.split(".")) if name else () for name in names]
        kept = {
            namespace[: op.max_depth]
            for namespace in namespaces
            if all(_matches(one, namespace) for one in op.match_conditions or ())
        }
        return sorted(kept)[op.offset : op.offset + op.limit]


def _trace(op: PutOp, known: Trace | None) -> Trace:
    if op.ttl is not None:
        raise NotImplementedError(
            "A ttl of single items is not supported; KVLogMemory(ttl=…) holds for all of them."
        )
    namespace, key = ".".join(op.namespace), str(op.key)
    if max(len(namespace), len(key)) > _MAX_CHARS:
        raise StoreError(
            f"A namespace and a key may have {_MAX_CHARS} characters each; these have "
            f"{len(namespace)} and {len(key)}. Keep what is long in the value."
        )
    if not isinstance(op.value, Mapping):
        raise StoreError(
            f"The value put under {key[:80]!r} is a {type(op.value).__name__}; it must be a dict "
            'of texts, numbers, booleans, lists and dicts, such as {"text": …}.'
        )
    try:
        value = json.loads(json.dumps(dict(op.value)))
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"The value put under {key[:80]!r} is not JSON: {error}. Give a dict of texts, "
            "numbers, booleans, lists and dicts."
        ) from None
    now = datetime.now(timezone.utc)
    if known is not None:  # even if another process's clock is ahead
        now = max(now, _updated_at(known) + timedelta(microseconds=1))
    metadata: dict[str, Any] = {
        PLACE: {"namespace": list(op.namespace), "key": key},
        _VALUE: value,
        _NAMESPACE: namespace,
        _KEY: key,
        _WITHIN: [".".join(op.namespace[:depth]) for depth in range(len(op.namespace) + 1)],
    }
    fields: dict[str, Any] = {
        "metadata": metadata,
        "started_at": known.started_at if known is not None else now,
        "ended_at": now,
    }
    texts = []
    if isinstance(op.index, list):
        texts = [text for path in op.index for text in get_text_at_path(value, path)]
    if op.index is False or (op.index is not None and not texts):
        metadata.update(NOT_RECALLED)
    if op.index is None and isinstance(value.get("messages"), list):
        try:
            trace = Trace.from_messages(value["messages"], **fields)
            trace.require_response()
            return trace
        except TraceError:
            pass  # "messages" means something else here
    # The task stays empty: names and ids in it would blur the embedding of the value.
    question = f"What is kept in {' / '.join((*op.namespace, key))}?"
    answer = "\n".join(texts) or _readable(value)
    chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Trace.from_messages(chat, task="", **fields)


def _readable(value: Mapping[str, Any]) -> str:
    lines = [
        f"{name}: {part if isinstance(part, str) else json.dumps(part, ensure_ascii=False)}"
        for name, part in value.items()
    ]
    return "\n".join(lines) or "nothing"


def _item(log: Trace, score: float | None = None) -> SearchItem | None:
    """Return the item of a log; None if the log is not an item."""
    match log.metadata.get(PLACE), log.metadata.get(_VALUE):
        case {"namespace": [*labels], "key": str(key)}, dict(value):
            return SearchItem(
                namespace=tuple(str(label) for label in labels),
                key=key,
                value=value,
                created_at=log.started_at,
                updated_at=_updated_at(log),
                score=score,
            )
    return None


def _items(logs: Iterable[tuple[Trace, float | None]]) -> list[SearchItem]:
    found = (_item(log, score) for log, score in logs)
    return [item for item in found if item is not None]


def _updated_at(log: Trace) -> datetime:
    return log.ended_at or log.started_at


def _newest(items: Sequence[SearchItem]) -> list[SearchItem]:
    """Return the items without older versions of the same key, in the same order."""
    newest: dict[tuple[_Namespace, str], SearchItem] = {}
    for item in items:
        place = item.namespace, item.key
        if place not in newest or newest[place].updated_at < item.updated_at:
            newest[place] = item
    return list(newest.values())


def _matches(condition: MatchCondition, namespace: _Namespace) -> bool:
    path = condition.path
    if len(namespace) < len(path):
        return False
    if condition.match_type == "prefix":
        part = namespace[: len(path)]
    else:
        part = namespace[len(namespace) - len(path) :]
    return all(wanted in ("*", label) for wanted, label in zip(path, part, strict=True))


def _matches_filter(value: Mapping[str, Any], wanted: Mapping[str, Any] | None) -> bool:
    return all(_equals(value.get(name), part) for name, part in (wanted or {}).items())


def _equals(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        if any(name.startswith("$") for name in wanted):
            return all(_compares(value, name, bound) for name, bound in wanted.items())
        return isinstance(value, Mapping) and _matches_filter(value, wanted)
    if isinstance(wanted, list | tuple):
        return (
            isinstance(value, list)
            and len(value) == len(wanted)
            and all(_equals(one, other) for one, other in zip(value, wanted, strict=True))
        )
    return bool(value == wanted)


def _compares(value: Any, name: str, bound: Any) -> bool:
    if name == "$eq":
        return bool(value == bound)
    if name == "$ne":
        return bool(value != bound)
    if name not in ("$gt", "$gte", "$lt", "$lte"):
        raise ValueError(f"Unsupported operator {name!r}; known are $eq $ne $gt $gte $lt $lte.")
    limit = float(bound)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return False  # not a number, or not there
    return {
        "$gt": number > limit,
        "$gte": number >= limit,
        "$lt": number < limit,
        "$lte": number <= limit,
    }[name]
