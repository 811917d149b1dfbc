"""Waiting until the logs of an evaluation are stored, and telling how far it is."""

from __future__ import annotations

import logging
from collections.abc import Callable

from lag_integrations import KVLogMemory
from lag_integrations.errors import EncodingError

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with what is done, how many of it, and of how many."""


def flush(memory: KVLogMemory, progress: Callable[[int, int], None] | None = None) -> None:
    """Wait for embeddings and segments; a log that cannot be encoded is one that is not given."""
    try:
        memory.flush(progress)
    except EncodingError as error:
        logger.warning("%s", error)
