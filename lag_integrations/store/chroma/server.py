"""A Chroma server, or a client that the user passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

from lag_integrations.errors import StoreError
from lag_integrations.store.chroma.access import client_settings
from lag_integrations.store.chroma.fork import note_use

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

_TIMEOUT = 30.0
"""Seconds for which a server may be silent."""


class ChromaServer:
    """A Chroma server, which handles concurrent clients itself.

    Args:
        connect: Returns a client.
        write_lock: Held while writing, so that two processes do not merge the same logs.
        owned: Whether `close` closes the client.
    """

    served: ClassVar[bool] = True

    def __init__(
        self,
        connect: Callable[[], ClientAPI],
        write_lock: Callable[[], AbstractContextManager[None]],
        *,
        owned: bool = True,
    ) -> None:
        self._connect = connect
        self._owned = owned
        self._write_lock = write_lock
        self._client: ClientAPI | None = None

    @classmethod
    def of_url(
        cls, url: str, write_lock: Callable[[], AbstractContextManager[None]]
    ) -> ChromaServer:
        """Return the server of an ``http://`` or ``https://`` URL.

        Raises:
            StoreError: It is not such a URL.
        """
        parts = urlsplit(url)
        host = parts.hostname
        if parts.scheme not in ("http", "https") or not host:
            raise StoreError(f"{url!r} is not the URL of a Chroma server, like http://host:8000.")

        def connect() -> ClientAPI:
            import chromadb
            import httpx

            ssl = parts.scheme == "https"
            # Chroma's own client would wait for an answer forever, while it connects already.
            httpx.get(f"{parts.scheme}://{parts.netloc}/api/v2/heartbeat", timeout=_TIMEOUT)
            client = chromadb.HttpClient(
                host, parts.port or (443 if ssl else 8000), ssl=ssl, settings=client_settings()
            )
            client._server._session.timeout = _TIMEOUT
            return client

        return cls(connect, write_lock)

    @contextmanager
    def session(self, *, write: bool) -> Iterator[ClientAPI]:
        """Return the client within the block. Writers exclude each other.

        Raises:
            BusyError: Others write for longer than is waited.
            ForkedError: It is an embedded client, and was used before this process was forked.
        """
        if self._client is None:
            self._client = self._connect()
        if "rust" in self._client.get_settings().chroma_api_impl:  # one that a user embeds
            note_use()
        if not write:
            yield self._client
            return
        with self._write_lock():
            yield self._client

    def reset(self) -> None:
        """Refuse: the server's operator has to repair it.

        Raises:
            StoreError: Always.
        """
        raise StoreError("The Chroma server does not answer as it should; restart or repair it.")

    def rewrite(self) -> bool:
        """Return False: only the server's operator can rewrite its files."""
        return False

    def close(self) -> None:
        """Release the connection."""
        if self._client is not None and self._owned:
            self._client.close()
        self._client = None
