"""Making lessons in the background, while nothing else is to do."""

from __future__ import annotations

import logging
import time

from lag_integrations.errors import StoreError
from lag_integrations.memory.lessons.groups import Group
from lag_integrations.memory.lessons.learner import MAX_NEW_TOKENS, MAX_TOKENS, Learner
from lag_integrations.memory.lessons.teacher import Teacher
from lag_integrations.store.store import LogStore

logger = logging.getLogger(__name__)

_REST = 20.0
"""Times as long as a look for groups took, before the next."""
_RETRY = 300.0
"""Seconds before a model that failed is asked again."""


class BackgroundLearning:
    """Makes a lesson at each step, as long as there are groups of runs that lack one.

    Args:
        store: The store.
        learner: Makes lessons.
    """

    def __init__(self, store: LogStore, learner: Learner) -> None:
        self._store = store
        self._learner = learner
        self._due: list[Group] = []
        self._seen: tuple[int, float] | None = None
        self._not_before = float("-inf")

    def make_one(self, teacher: Teacher) -> bool:
        """Have one lesson made; return False if there is nothing to do now.

        A model that fails is a warning.

        Raises:
            StoreError: The store fails.
        """
        if not self._due and not self._look():
            return False
        group = self._due.pop(0)
        try:
            self._learner.make(group, teacher, MAX_TOKENS, MAX_NEW_TOKENS)
        except StoreError:
            raise
        except Exception as error:
            if not teacher.cancelled():
                # The type only: a message may repeat a text.
                logger.warning(
                    "The model that distils lessons failed (%s); it is asked again later.",
                    type(error).__name__,
                )
                logger.debug("The model that distils lessons failed.", exc_info=True)
            self._due, self._seen = [], None
            self._not_before = time.monotonic() + _RETRY
            return False
        return True

    def _look(self) -> bool:
        """Look for groups that lack a lesson, if logs came or went since the last look."""
        begun = time.monotonic()
        if begun < self._not_before or (state := self._store.lessons.state()) == self._seen:
            return False
        self._due, self._seen = self._learner.due(), state
        done = time.monotonic()
        self._not_before = done + _REST * (done - begun)
        return bool(self._due)
