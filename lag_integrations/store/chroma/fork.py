"""Processes forked from one that has used an embedded Chroma.

They cannot use it: the threads of its client, which outlast its closing, do not exist in the child,
which would wait for them forever.
"""

from __future__ import annotations

import os

from lag_integrations.errors import ForkedError


class _Use:
    here = False
    before_fork = False


def note_use() -> None:
    """Record that this process uses an embedded Chroma.

    Raises:
        ForkedError: A process that it was forked from has used one.
    """
    refuse_forked()
    _Use.here = True


def refuse_forked() -> None:
    """Refuse to go on in a process forked from one that has used an embedded Chroma.

    Raises:
        ForkedError: This is such a process.
    """
    if _Use.before_fork:
        raise ForkedError(
            "This process was forked from one that had used Chroma, which hangs in such a process. "
            "Start processes by 'spawn' or 'forkserver', or fork before a memory is opened."
        )


def _after_fork() -> None:
    _Use.before_fork = _Use.before_fork or _Use.here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
