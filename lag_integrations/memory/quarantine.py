"""Logs that a screen put aside: kept, but neither recalled nor encoded until they are released."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from lag_integrations.errors import LogNotFoundError
from lag_integrations.store.ledger import Ledger
from lag_integrations.store.log_info import LogInfo
from lag_integrations.store.recall_conditions import in_quarantine


class LogQuarantine:
    """The logs in quarantine of one namespace.

    Args:
        ledger: The logs.
        released: Called when logs were released.
    """

    def __init__(self, ledger: Ledger, released: Callable[[], None] | None = None) -> None:
        self._ledger = ledger
        self._released = released

    def logs(self, limit: int | None = None) -> Iterator[LogInfo]:
        """Yield the logs in it, last captured first, each with its reason (``quarantine``).

        At most 16 MiB of traces, or one, are read at once: whoever fills it decides their size.
        """
        for page in self._ledger.pages(self._ledger.newest_ids(in_quarantine(), limit=limit)):
            yield from self._ledger.info(page)

    def release(self, log_ids: str | Iterable[str]) -> None:
        """Let logs be recalled from now on, until their run is captured and screened again.

        Raises:
            LogNotFoundError: A log is not in quarantine; the others are released.
        """
        ids = {log_ids} if isinstance(log_ids, str) else set(log_ids)
        missing = ids - self._ledger.release(sorted(ids))
        if self._released is not None:
            self._released()
        if missing:
            raise LogNotFoundError(
                f"There is no log {', '.join(sorted(missing))} in quarantine in namespace "
                f"{self._ledger.namespace}."
            )
