"""A limit on the time of a whole run: what does not fit is left out, and said to be."""

from __future__ import annotations

import time


class TimeLimit:
    """Tells what there is still time for.

    Args:
        seconds: From now on.

    Attributes:
        subject: What is being measured: the model.
        not_run: What was left out, of which subject, and why.
    """

    def __init__(self, seconds: float) -> None:
        self.subject = ""
        self.not_run: list[str] = []
        self._end = time.monotonic() + seconds

    @property
    def over(self) -> bool:
        """Whether no time is left."""
        return time.monotonic() >= self._end

    def fits(self, what: str, expected: float = 0.0) -> bool:
        """Return whether there is time for something; note it, if not.

        Args:
            what: What is to be done.
            expected: The seconds that it will take, as far as that is known.
        """
        if time.monotonic() + expected < self._end:
            return True
        self.leave_out(what, "no time left")
        return False

    def leave_out(self, what: str, why: str) -> None:
        """Note that something is not done, and why."""
        self.not_run.append(f"{self.subject}, {what}: {why}")
