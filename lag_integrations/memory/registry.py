"""Registry of the memories that are open in this process, by id and by folder."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakValueDictionary


class OpenMemory(Protocol):
    """What the registry asks of a memory."""

    @property
    def id(self) -> str:
        """Identity within this process."""
        ...

    @property
    def path(self) -> Path:
        """Its folder."""
        ...

    @property
    def namespace(self) -> str:
        """Its tenant."""
        ...


M = TypeVar("M", bound=OpenMemory)


class Registry(Generic[M]):
    """Finds an open memory for what can only name it: a message, a memory made from JSON."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: WeakValueDictionary[str, M] = WeakValueDictionary()

    def register(self, memory: M) -> None:
        """Add a memory that was opened."""
        with self._lock:
            self._open[memory.id] = memory

    def unregister(self, memory: M) -> None:
        """Remove a memory that was closed."""
        with self._lock:
            self._open.pop(memory.id, None)

    def all(self) -> list[M]:
        """Return the memories that are open."""
        with self._lock:
            return list(self._open.values())

    def find(self, id: str) -> M | None:
        """Return the open memory with an id."""
        return self._open.get(id)

    def find_at(self, path: str | Path, namespace: str) -> M | None:
        """Return the memory that was opened last with a folder and namespace, if it is open."""
        place = os.path.realpath(path)
        for memory in reversed(self.all()):
            if memory.namespace == namespace and os.path.realpath(memory.path) == place:
                return memory
        return None


open_memories: Registry[Any] = Registry()
"""The memories that are open in this process."""
