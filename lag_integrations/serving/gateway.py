"""What the routes of the gateway share: its model, its memories, and who asks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from lag_integrations.memory.memory import LogMemory
from lag_integrations.serving.chat_service import ChatService
from lag_integrations.serving.tenants import ApiKeys, Memories, Tenant


@dataclass(frozen=True)
class Gateway:
    """A model and the memories of those who may ask it.

    Attributes:
        service: Who answers.
        memories: The memories of its tenants.
        keys: The API keys; without any, everybody who reaches the server is one tenant.
        namespace: That tenant.
    """

    service: ChatService
    memories: Memories
    keys: ApiKeys | None = None
    namespace: str = "default"

    def tenant(self, authorization: str | None) -> Tenant:
        """Return who asks.

        Raises:
            ApiError: Nobody who may.
        """
        if self.keys is None:
            return Tenant(namespace=self.namespace, metrics=True)
        return self.keys.tenant(authorization)


def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


def _service(request: Request) -> ChatService:
    return _gateway(request).service


def _tenant(request: Request) -> Tenant:
    return _gateway(request).tenant(request.headers.get("authorization"))


WhoAsks = Annotated[Tenant, Depends(_tenant)]
"""The tenant whose key a request has."""
Service = Annotated[ChatService, Depends(_service)]
"""Who answers."""


async def _memory(request: Request, who: WhoAsks) -> LogMemory:
    return await asyncio.to_thread(_gateway(request).memories.of, who.namespace)


Memory = Annotated[LogMemory, Depends(_memory)]
"""The memory of who asks."""
