"""The gateway as a process: a model, its memories, and a web server."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import uvicorn

from lag_integrations.chat.settings import ModelSettings
from lag_integrations.errors import LAGError
from lag_integrations.memory.memory import LogMemory
from lag_integrations.serving.app import create_app
from lag_integrations.serving.backends import Backend
from lag_integrations.serving.chat_service import ChatService
from lag_integrations.serving.gateway import Gateway
from lag_integrations.serving.tenants import ApiKeys, Memories


class Server:
    """Serves a model with a memory.

    Args:
        backend: The model.
        open_memory: Opens the memory of a namespace.
        name: Name of the model for clients.
        namespace: Whose memory everybody is given, without keys.
        keys: File of API keys, see `ApiKeys.read`.
        k: Most logs to recall; the memory's own setting by default.
        max_tokens: Most tokens of an answer that does not say how many.
        timeout: Most seconds of an answer.
        most_at_once: Most answers at once.

    Raises:
        SettingsError: The keys cannot be read.
        StoreError: The memory cannot be opened.
    """

    def __init__(
        self,
        backend: Backend,
        open_memory: Callable[[str], LogMemory],
        *,
        name: str,
        namespace: str = "default",
        keys: Path | None = None,
        k: int | None = None,
        max_tokens: int = 512,
        timeout: float = 600.0,
        most_at_once: int = 64,
    ) -> None:
        known = None if keys is None else ApiKeys.read(keys)
        self.name = name
        self._memories = Memories(open_memory)
        if known is None:
            self._memories.of(namespace)  # now: what is wrong is said at the start
        service = ChatService(
            backend,
            self.name,
            ModelSettings(model=self.name, k=k, max_tokens=max_tokens),
            timeout=timeout,
            most_at_once=most_at_once,
        )
        self.app = create_app(Gateway(service, self._memories, known, namespace))
        self._socket: socket.socket | None = None
        self._server = uvicorn.Server(
            uvicorn.Config(
                self.app,
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=10,
                server_header=False,
            )
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()
        self._memories.close()

    def listen(self, host: str, port: int) -> None:
        """Take the address; 0 is any free port.

        Raises:
            LAGError: It is taken, or not this machine's.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            listening.close()
            raise LAGError(
                f"Cannot listen at {host}:{port} ({error.strerror}); give another --port."
            ) from None
        self._socket = listening

    @property
    def url(self) -> str:
        """Where it listens."""
        assert self._socket is not None
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run(self) -> None:
        """Answer until the process is told to end."""
        assert self._socket is not None
        with suppress(KeyboardInterrupt):  # which uvicorn raises again once it has ended well
            self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Have `run` return, on another thread."""
        self._server.should_exit = True
