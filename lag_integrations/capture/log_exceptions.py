"""Callbacks that never raise: a memory must not break the application that it remembers."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


def log_exceptions(callback: Callable[..., None]) -> Callable[..., None]:
    """Wrap a callback so that its exceptions are logged as warnings instead of raised."""

    @functools.wraps(callback)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            callback(*args, **kwargs)
        except Exception as error:
            # The type only: a message may repeat a text.
            logger.warning("A step could not be captured (%s).", type(error).__name__)
            logger.debug("%s failed.", callback.__name__, exc_info=True)

    return wrapper
