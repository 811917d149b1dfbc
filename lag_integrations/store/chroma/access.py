"""What the index asks of a Chroma database, wherever it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, ClassVar, Protocol

from lag_integrations.errors import StoreError

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from chromadb.config import Settings


class ChromaAccess(Protocol):
    """A Chroma database.

    Attributes:
        served: Whether a server keeps its files.
    """

    served: ClassVar[bool]

    def session(self, *, write: bool) -> AbstractContextManager[ClientAPI]:
        """Return a client that may be used within the block. Writers exclude each other."""
        ...

    def rewrite(self) -> bool:
        """Remove what was deleted from the disk; return whether that was possible."""
        ...

    def reset(self) -> None:
        """Replace a broken database by an empty one, if that is possible."""
        ...

    def close(self) -> None:
        """Release the database."""
        ...


class ReadOnlyChroma:
    """The embedded database of a read-only store. It is not used: Chroma would write into it."""

    served: ClassVar[bool] = False

    @contextmanager
    def session(self, *, write: bool) -> Iterator[ClientAPI]:
        """Refuse, so that all embeddings are compared instead."""
        raise StoreError("The index of a store that can only be read cannot be used.")
        yield

    def rewrite(self) -> bool:
        """Return False."""
        return False

    def reset(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def client_settings() -> Settings:
    """Return the settings of all clients."""
    from chromadb.config import Settings

    return Settings(anonymized_telemetry=False)
