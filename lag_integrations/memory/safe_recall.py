"""Recall on behalf of an answer or an agent, which must not break for it."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lag_integrations.errors import EmbedderMismatchError, SettingsError, StoreError
from lag_integrations.memory.results import SearchResult
from lag_integrations.memory.setting_checks import check_number
from lag_integrations.store.filters import Where, condition
from lag_integrations.traces.message import Message
from lag_integrations.traces.owner import NOBODY, Owner
from lag_integrations.traces.sources import Source, is_outdated, sources_in
from lag_integrations.traces.trace import Trace

if TYPE_CHECKING:
    from lag_integrations.engine.engine import Engine
    from lag_integrations.memory.memory import LogMemory
    from lag_integrations.memory.results import RecalledLog

logger = logging.getLogger(__name__)


WhereFunction = Callable[[Any], Where]
"""Returns the filter for a run: of its config in LangChain, its tags in LlamaIndex."""


@dataclass(frozen=True)
class Refused:
    """In the place of a filter: nothing may be recalled.

    Attributes:
        reason: Why, as a sentence.
    """

    reason: str

    def nothing(self) -> list[Any]:
        """Return no logs, and say why."""
        logger.warning("Nothing is recalled. %s", self.reason)
        return []


Filter = Where | Refused
AnyWhere = Where | WhereFunction | Refused


def filter_for(where: AnyWhere | None, run: Mapping[str, Any]) -> Filter | None:
    """Return the filter by which logs are recalled for a run.

    Args:
        where: A filter, or a function of the run that returns one. Where that fails, nothing is
            recalled: to recall without its filter could show a user another one's logs.
        run: What is known of the run.
    """
    if not callable(where):
        return where
    try:
        found = copy.deepcopy(where(run))  # the function may go on using it
        condition(found)
    except StoreError as error:
        return Refused(f"The function that is where= returned no filter. {error}")
    except Exception as error:
        # The type only: a message may repeat what it was given.
        logger.debug("The function that is where= failed.", exc_info=True)
        return Refused(f"The function that is where= failed ({type(error).__name__}).")
    return found


def check_where(where: AnyWhere | None) -> None:
    """Refuse a malformed filter now, rather than with a warning in every run.

    Raises:
        StoreError: The filter is malformed.
    """
    if not (where is None or callable(where) or isinstance(where, Refused)):
        condition(where)


@dataclass(frozen=True)
class SafeRecall:
    """Recalls with fixed settings; a memory that fails gives nothing, and a warning.

    Attributes:
        memory: Where logs are recalled from.
        k: Most logs to recall; the memory's own by default, as for all that follow.
        min_score: Least similarity.
        where: Only logs with such metadata; a function is asked by `of`.
        owner: Whose run asks.
        steps: Whether of each log only the step is meant that is nearest to the query.

    Raises:
        SettingsError: `k` is negative.
        StoreError: The filter is malformed.
    """

    memory: LogMemory
    k: int | None = None
    min_score: float | None = None
    where: AnyWhere | None = None
    owner: Owner = NOBODY
    steps: bool = False

    def __post_init__(self) -> None:
        if self.k is not None and self.k < 0:
            raise SettingsError(f"k is {self.k}; it must be at least 0.")
        if self.min_score is not None:
            check_number("min_score", self.min_score, -1, 1)
        check_where(self.where)

    def of(self, run: Mapping[str, Any], owner: Owner) -> SafeRecall:
        """Return the recall for a run (see `filter_for`), and whose it is."""
        return replace(self, where=filter_for(self.where, run), owner=owner)

    def __call__(
        self,
        query: str,
        *,
        before: str | None = None,
        prompt: Sequence[Message] = (),
        shown: Sequence[Source] = (),
        known: Collection[str] = (),
    ) -> list[RecalledLog]:
        """Return the logs that fit a query, best first; see `search`."""
        return self.search(query, before=before, prompt=prompt, shown=shown, known=known).logs

    def search(
        self,
        query: str,
        *,
        before: str | None = None,
        prompt: Sequence[Message] = (),
        shown: Sequence[Source] = (),
        known: Collection[str] = (),
        count: bool = True,
    ) -> SearchResult:
        """Return the logs that fit a query, or else the nearest miss.

        Args:
            query: The task.
            before: What the user said before it.
            prompt: What the model is given anyway: no logs of which that holds task and response.
            shown: Documents that it is given: no logs of which one was changed since.
            known: References of what is not to be found again.
            count: Whether this counts as a use of the logs.

        Raises:
            EmbedderMismatchError: Nothing would ever be recalled: that has to be seen.
        """
        where: Any = self.where  # a function that nobody asked is refused as no filter
        if isinstance(where, Refused):
            return SearchResult(where.nothing())
        try:
            return self.memory.search(
                query,
                before=before,
                k=self.k,
                min_score=self.min_score,
                where=where,
                newest_only=True,
                skip=_Superfluous(prompt, shown),
                steps=self.steps,
                known=known,
                count=count,
                user=self.owner.user,
                thread=self.owner.thread,
            )
        except EmbedderMismatchError:
            raise
        except StoreError as error:
            return SearchResult(_nothing(error))

    def by_id(
        self,
        log_ids: Sequence[str],
        *,
        prompt: Sequence[Message] = (),
        shown: Sequence[Source] = (),
    ) -> list[RecalledLog]:
        """Return logs that were recalled before, but those deleted since.

        Args:
            log_ids: The logs.
            prompt: As for a query.
            shown: As for a query.
        """
        try:
            logs = self.memory.get(log_ids)
        except StoreError as error:
            return _nothing(error)
        skip = _Superfluous(prompt, shown)
        return [log for log in logs if not skip(log.trace)]


def attach_safely(memory: LogMemory, engine: Engine) -> None:
    """Attach a model for an answer; a memory that fails costs no more than its logs."""
    try:
        memory.attach(engine)
    except StoreError as error:
        logger.warning("The memory cannot be used for now. %s", error)


class Recalled:
    """What was recalled for a task, before all documents are known that its model calls are shown.

    Args:
        recall: How logs are recalled.
        query: The task.
        before: As for `SafeRecall.search`, as for all that follow.
        prompt: What the model is given anyway.
        shown: Documents that are known by now.

    Raises:
        EmbedderMismatchError: Nothing would ever be recalled: that has to be seen.
    """

    def __init__(
        self,
        recall: SafeRecall,
        query: str,
        *,
        before: str | None = None,
        prompt: Sequence[Message] = (),
        shown: Sequence[Source] = (),
    ) -> None:
        self._memory = recall.memory
        self._search = partial(recall.search, query, before=before, prompt=prompt, count=False)
        self._lock = threading.Lock()
        self._used: set[str] = set()
        self.result = self._search(shown=shown)

    def use(self, shown: Sequence[Source]) -> SearchResult:
        """Return what a call is given; others take the places of outdated logs.

        Args:
            shown: Documents that the call is shown.
        """
        with self._lock:
            known = [sources_in(log.trace.metadata) for log in self.result.logs]
            if any(is_outdated(sources, shown) for sources in known):
                self.result = self._search(shown=shown)
            new = {log.id for log in self.result.logs} - self._used
            self._memory.count_uses(new)
            self._used |= new
            return self.result


class _Superfluous:
    """Says of a log whether a prompt holds it already, or newer documents than its own.

    Args:
        prompt: The messages.
        shown: The documents.
    """

    def __init__(self, prompt: Sequence[Message], shown: Sequence[Source]) -> None:
        self._said = [(message.role, message.text.strip()) for message in prompt]
        self._shown = shown

    def __call__(self, log: Trace) -> bool:
        if self._holds(log):
            return True
        return bool(self._shown) and is_outdated(sources_in(log.metadata), self._shown)

    def _holds(self, log: Trace) -> bool:
        """Return whether the task of a log stands in the prompt, and after it its last response.

        Something may stand around the task, as what an agent tells of its state, and before the
        response, as a ReAct agent's thoughts.
        """
        task, response = log.task.strip(), log.last_response.strip()
        asked = False
        for role, text in self._said if task and response else ():
            if role == "user":
                asked = asked or text.startswith(task) or text.endswith(task)
            elif role == "assistant" and asked and text.endswith(response):
                return True
        return False


def _nothing(error: StoreError) -> list[RecalledLog]:
    logger.warning("Nothing is recalled. %s", error)
    return []


def miss_report(log: RecalledLog | None) -> dict[str, Any] | None:
    """Return what is said of a nearest miss, if there is one."""
    if log is None:
        return None
    return {"log_id": log.id, "score": log.score, "relevance": log.relevance}
