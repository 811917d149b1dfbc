"""What logs are searched by, where somebody says more than the last messages do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

logger = logging.getLogger(__name__)

QueryOf = str | Callable[[list[Any]], str]
"""A text, or a function of the framework's messages that returns one."""


def query_of(given: QueryOf | None, messages: Sequence[Any]) -> str | None:
    """Return the text to search by; None for the usual one.

    A function that fails costs no answer: a warning is logged, and the usual text is used.

    Args:
        given: What is to be used instead of the usual text.
        messages: The conversation, as the framework has it.
    """
    if given is None or isinstance(given, str):
        return given
    try:
        found = given(list(messages))
    except Exception as error:  # anything: it is the user's code
        # The name only: the message may repeat the conversation.
        logger.warning("query= failed (%s); it is left out.", type(error).__name__)
        return None
    if isinstance(found, str):
        return found
    logger.warning("query= gave %s instead of a text; it is left out.", type(found).__name__)
    return None
