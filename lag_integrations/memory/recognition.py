"""Recognises logs that come back as documents: their id alone anybody may write."""

from __future__ import annotations

import logging

from lag_integrations.errors import StoreError
from lag_integrations.memory.base import MemoryBase
from lag_integrations.memory.registry import open_memories
from lag_integrations.memory.rendering import log_text

logger = logging.getLogger(__name__)
_MOST_CHARACTERS = 64
"""Of the id of a log."""


def is_log(log_id: object, text: str) -> bool:
    """Return whether an open memory has a log with this id and, as a document, with this text.

    What is none, or was shortened or joined on its way, counts as a document, which is trusted
    less.
    """
    if not isinstance(log_id, str) or not 0 < len(log_id) <= _MOST_CHARACTERS:
        return False
    return any(_text_in(memory, log_id) == text for memory in open_memories.all())


def _text_in(memory: MemoryBase, log_id: str) -> str | None:
    try:
        trace = memory.store.ledger.get([log_id]).get(log_id)
    except StoreError as error:
        logger.warning("Whether a document is a log cannot be seen now. %s", error)
        return None
    return None if trace is None else log_text(trace)
