"""LangChain's key-value store over one namespace of `LogBaseStore`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.stores import BaseStore
from langgraph.store.base import GetOp, PutOp

from lag_integrations.langchain.store import LogBaseStore
from lag_integrations.memory.memory import LogMemory

_ALL = 2**31 - 1


class LogKeyValueStore(BaseStore[str, dict[str, Any]]):
    """A LangChain store (``mget``, ``mset``, …) whose values are logs.

    It is one namespace of a `LogBaseStore`, whose docstring says what holds for its values.

    Args:
        memory: Where the values are kept.
        name: The namespace; stores of different names do not see each other's keys.
    """

    def __init__(self, memory: LogMemory, name: str = "key_value") -> None:
        self._store = LogBaseStore(memory)
        self._namespace = (name,)

    def mget(self, keys: Sequence[str]) -> list[dict[str, Any] | None]:
        """Return the values of keys; None for a key that is not there."""
        items = self._store.batch([GetOp(self._namespace, key) for key in keys])
        return [None if item is None else item.value for item in items]  # type: ignore[union-attr]

    def mset(self, key_value_pairs: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Set the values of keys.

        Raises:
            StoreError: A value is not JSON, a key too long, or the store fails.
        """
        self._store.batch([PutOp(self._namespace, key, value) for key, value in key_value_pairs])

    def mdelete(self, keys: Sequence[str]) -> None:
        """Delete keys; missing ones are ignored."""
        self._store.batch([PutOp(self._namespace, key, None) for key in keys])

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """Yield the keys that begin with a prefix."""
        items = self._store.search(self._namespace, limit=_ALL)
        keys = [item.key for item in items if item.namespace == self._namespace]
        yield from (key for key in keys if key.startswith(prefix or ""))
