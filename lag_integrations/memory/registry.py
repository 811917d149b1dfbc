"""The memories that are open in this process: what can only be named is found here."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from lag_integrations.memory.memory import LogMemory

_lock = threading.Lock()
_opened: WeakValueDictionary[str, LogMemory] = WeakValueDictionary()


def remember(memory: LogMemory) -> None:
    """A memory was opened."""
    with _lock:
        _opened[memory.id] = memory


def forget(memory: LogMemory) -> None:
    """A memory was closed."""
    with _lock:
        _opened.pop(memory.id, None)


def opened_as(id: str) -> LogMemory | None:
    """The open memory with an id."""
    return _opened.get(id)


def opened_at(path: str | Path, namespace: str) -> LogMemory | None:
    """The memory that was opened last with a folder and namespace, if it is open."""
    place = os.path.realpath(path)
    with _lock:
        memories = list(_opened.values())
    for memory in reversed(memories):
        if memory.namespace == namespace and os.path.realpath(memory.path) == place:
            return memory
    return None
