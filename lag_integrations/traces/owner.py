"""The owner of a run: its user and its thread."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_USER_KEYS = ("user_id", "user")
_THREAD_KEY = "thread_id"


@dataclass(frozen=True)
class Owner:
    """The owner of a run.

    Attributes:
        user: Its user, if one is named.
        thread: Its thread, if it is one of several runs of a conversation.
    """

    user: str | None = None
    thread: str | None = None

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Owner:
        """Return the owner that metadata name by ``user_id`` or ``user``, and ``thread_id``."""
        users = (named for key in _USER_KEYS if (named := _as_name(metadata.get(key))) is not None)
        return cls(next(users, None), _as_name(metadata.get(_THREAD_KEY)))

    def overridden_by(self, where: Mapping[str, Any] | None) -> Owner:
        """Return the user and thread that a filter names, else this owner's."""
        named = Owner.of(_equalities(where or {}))
        return Owner(named.user or self.user, named.thread or self.thread)

    @property
    def tags(self) -> list[str]:
        """The tags that are stored with a log of this owner."""
        if self.user is None:
            return [_tag("thread", self.thread)]
        of_user = [_tag("user", self.user)]
        return of_user if self.thread is None else [*of_user, _tag(_USERS_THREAD, self.thread)]

    @property
    def readable_tags(self) -> list[str]:
        """The tags of logs that this owner may read.

        If the log and the reader both have a user, the users must be equal; otherwise the threads
        must be. Runs without user and thread belong to readers without both.
        """
        if self.user is None:
            kinds = ["thread"] if self.thread is None else ["thread", _USERS_THREAD]
            return [_tag(kind, self.thread) for kind in kinds]
        found = [_tag("user", self.user)]
        return found if self.thread is None else [*found, _tag("thread", self.thread)]


NOBODY = Owner()
"""The owner of runs without a user and a thread."""
_USERS_THREAD = "thread of a user"


def _as_name(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value) or None


def _equalities(where: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a filter requires, by key."""
    found: dict[str, Any] = {}
    for key, value in where.items():
        if key == "$and":
            for part in value:
                found |= _equalities(part)
        elif isinstance(value, Mapping):
            found[key] = value.get("$eq")
        else:
            found[key] = value
    return found


def _tag(kind: str, name: str | None) -> str:
    # A hash: names may be long, and hold what databases do not take.
    text = f"{kind}\n{name or ''}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
