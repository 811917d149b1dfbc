"""Who may ask the gateway, and whose memory they are given."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lag_integrations.errors import SettingsError
from lag_integrations.memory.memory import LogMemory
from lag_integrations.serving.api_errors import ApiError
from lag_integrations.store.log_id import validate_namespace

_DIGEST = "sha256:"
_SHORTEST_KEY = 16


class Tenant(BaseModel):
    """What a key opens.

    Attributes:
        namespace: The tenant whose logs are recalled, and whose runs are captured.
        expires: Unix time from which the key is refused.
        metrics: Whether the key may read the server's metrics.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    namespace: Annotated[str, Field(min_length=1)]
    expires: float | None = None
    metrics: bool = False


@dataclass(frozen=True)
class ApiKeys:
    """The keys that a server knows, by their SHA-256.

    Attributes:
        tenants: What each opens.
    """

    tenants: Mapping[str, Tenant]

    @classmethod
    def read(cls, file: Path) -> ApiKeys:
        """Read a JSON file: ``{"<key>": {"namespace": "team-a"}}``.

        A key stands there as it is, or as ``sha256:`` and the hexadecimal SHA-256 of it.

        Raises:
            SettingsError: The file holds something else, or a key that can be guessed.
        """
        form = TypeAdapter(dict[str, Tenant])
        try:
            given = form.validate_python(json.loads(file.read_text("utf-8")))
        except ValidationError as error:
            # Neither keys nor values: what is wrong is said, not what is in it.
            kinds = sorted({item["msg"] for item in error.errors()})
            raise SettingsError(f"{file} is no file of API keys: {'; '.join(kinds)}.") from None
        except (ValueError, RecursionError):
            raise SettingsError(f"{file} is no file of API keys: it is not JSON.") from None
        found = {}
        for key, tenant in given.items():
            validate_namespace(tenant.namespace)
            digest = key.removeprefix(_DIGEST)
            if digest == key:
                if len(key) < _SHORTEST_KEY:
                    raise SettingsError(
                        f"{file} has a key of {len(key)} characters; keys need {_SHORTEST_KEY} "
                        "at least. `openssl rand -hex 24` makes one."
                    )
                digest = _sha256(key)
            elif len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
                raise SettingsError(f"{file} has a key that begins with {_DIGEST}, but is no hash.")
            found[digest] = tenant
        if not found:
            raise SettingsError(f"{file} has no keys, so nobody could ask; give at least one.")
        return cls(found)

    def tenant(self, authorization: str | None) -> Tenant:
        """Return what the key of a request opens.

        Args:
            authorization: Its header: ``Bearer <key>``.

        Raises:
            ApiError: There is no key, or it opens nothing (any more).
        """
        kind, _, key = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not key.strip():
            raise ApiError(401, "Give an API key: `Authorization: Bearer <key>`.", "no_api_key")
        # By its hash: how long this takes tells nothing of the keys that there are.
        tenant = self.tenants.get(_sha256(key.strip()))
        if tenant is None or (tenant.expires is not None and time.time() >= tenant.expires):
            raise ApiError(401, "The API key is not valid (any more).", "invalid_api_key")
        return tenant


class Memories:
    """The memories of a server's tenants, each opened at its first request.

    Args:
        open_memory: Opens that of a namespace.
    """

    def __init__(self, open_memory: Callable[[str], LogMemory]) -> None:
        self._open_memory = open_memory
        self._open: dict[str, LogMemory] = {}
        self._lock = threading.Lock()

    def of(self, namespace: str) -> LogMemory:
        """Return the memory of a namespace."""
        with self._lock:
            if namespace not in self._open:
                self._open[namespace] = self._open_memory(namespace)
            return self._open[namespace]

    def close(self) -> None:
        """Close all that are open."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
