"""Learning: lessons are distilled from what several runs did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lag_integrations.errors import DistillationError, LAGError
from lag_integrations.memory.lessons.learner import MAX_NEW_TOKENS, MAX_TOKENS, LearnResult
from lag_integrations.memory.maintenance import MaintenanceMixin

_MOST_FAILURES = 3
"""Groups for which a model fails, before it is not asked for others."""


class LearningMixin(MaintenanceMixin):
    """Makes lessons."""

    def learn(
        self,
        model: Any = None,
        *,
        max_lessons: int | None = None,
        max_tokens: int = MAX_TOKENS,
        max_new_tokens: int = MAX_NEW_TOKENS,
        progress: Callable[[int, int], None] | None = None,
    ) -> LearnResult:
        """Distil lessons from runs of alike tasks, successes and failures.

        A lesson says when it applies, what to do, what to avoid, with an example. It is a log, with
        ``lag_lesson`` in its metadata and its sources under ``lag_lesson_of``: recalled like any
        other, and encoded in the context of these runs. It is deleted as soon as one of them is
        deleted or judged otherwise, and made anew by the next call, which makes only what is
        missing. Each is recorded at once, so a call that was interrupted goes on where it was.

        Runs of different users never come together, unless all logs are anybody's
        (``unjudged_documents="any"``). A lesson keeps the metadata that all its runs share.

        Args:
            model: What distils them: an `Engine`, a chat model of LangChain, an LLM of LlamaIndex,
                or a function from a prompt to an answer; the attached model by default.
            max_lessons: Most lessons to make now; no limit by default.
            max_tokens: Most tokens of a prompt. Of longer runs, the middle is left out.
            max_new_tokens: Most tokens of a lesson.
            progress: Called with the number of groups of runs done, and of all.

        Returns:
            What was made, and what is left.

        Raises:
            SettingsError: The model is none of these.
            DistillationError: The model failed; what was made before is kept.
            StoreError: No model is given or attached, or the store fails or can only be read.
        """
        self._check_open()
        self.store.database.require_writable()
        teacher = self._teacher(model, max_new_tokens, lambda: self._closed)
        self.embed_pending()
        groups = self._learner.due()
        wanted = groups if max_lessons is None else groups[:max_lessons]
        lessons: list[str] = []
        failures: list[Exception] = []
        refused = 0
        for done, group in enumerate(wanted):
            if progress is not None:
                progress(done, len(wanted))
            self._check_open()
            try:
                made = self._learner.make(group, teacher, max_tokens, max_new_tokens)
            except LAGError:
                raise
            except Exception as error:
                failures.append(error)  # of one group, it may be what its runs say
                if len(failures) == _MOST_FAILURES:
                    break
                continue
            refused += made.refused
            if made.key is not None:
                self._worker.notify(added=1)
                if not made.refused:
                    lessons.append(made.key)
        if failures:
            # The type only: a message may repeat a text.
            raise DistillationError(
                f"The model that distils lessons failed ({type(failures[0]).__name__}) for "
                f"{len(failures)} of {len(wanted)} groups of runs; {len(lessons)} lessons were "
                "made, and are kept. Call learn again to go on."
            ) from failures[0]
        if progress is not None:
            progress(len(wanted), len(wanted))
        return LearnResult(tuple(lessons), refused, len(groups) - len(wanted))

    def _run_once(self, *, full_scan: bool = False) -> bool:
        if super()._run_once(full_scan=full_scan):
            return True
        return not full_scan and self._learn_some()

    def _learn_some(self) -> bool:
        """Make a lesson, if that is to be done in the background; return False if there is none."""
        if self._background is None or (self._learn_with is None and not self._engines):
            return False
        worker = self._worker
        return self._background.make_one(
            self._teacher(self._learn_with, MAX_NEW_TOKENS, lambda: worker.is_stopped)
        )
