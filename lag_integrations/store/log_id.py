"""Namespaces, and the ids of the logs in them."""

from __future__ import annotations

import hashlib
import re

from lag_integrations.errors import StoreError
from lag_integrations.traces.trace import Trace

_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def validate_namespace(name: object) -> str:
    """Return a namespace's name unchanged.

    Raises:
        StoreError: It is not a valid name.
    """
    if not isinstance(name, str) or not _NAMESPACE.fullmatch(name):
        raise StoreError(
            f"{str(name)[:80]!r} is not a valid namespace. Use 1 to 64 letters, digits, "
            "'.', '_' or '-', beginning with a letter or digit."
        )
    return name


def log_id(namespace: str, trace: Trace) -> str:
    """Return the id of a trace's log: equal content in one namespace is one log."""
    return hashlib.sha256(f"{namespace}\n{trace.content_hash}".encode()).hexdigest()[:32]
