"""Routes about logs: what became of runs, and what people say of them."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic_core import to_json
from starlette.responses import Response

from lag_integrations.errors import LogNotFoundError
from lag_integrations.memory.memory import LogMemory
from lag_integrations.serving.api_errors import ApiError
from lag_integrations.serving.api_types import RunFeedback
from lag_integrations.serving.gateway import Memory
from lag_integrations.store.log_info import LogInfo

_LogId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="Id of a log.")]


routes = APIRouter(prefix="/v1/lag")


@routes.post("/feedback")
async def feedback(said: RunFeedback, memory: Memory) -> dict[str, str]:
    """Say how a run ended, or whether logs helped."""
    of_run = said.run_id is not None and said.outcome is not None
    of_logs = said.log_ids is not None and said.helped is not None
    given = [said.run_id, said.outcome, said.log_ids, said.helped]
    if of_run == of_logs or sum(one is not None for one in given) != 2:
        raise ApiError(400, "Give either run_id and outcome, or log_ids and helped.")
    await asyncio.to_thread(_record, memory, said)
    return {"status": "recorded"}


@routes.get("/logs")
async def logs(
    memory: Memory,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 20,
    offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
) -> Response:
    """List logs, newest first."""
    return _reply({"data": await asyncio.to_thread(_listed, memory, limit, offset)})


@routes.get("/logs/{log_id}")
async def log(log_id: _LogId, memory: Memory) -> Response:
    """Return a log with its messages."""
    info = await asyncio.to_thread(_found, memory, log_id)
    return _reply({**_as_dict(info), "messages": [one.model_dump() for one in info.trace.messages]})


@routes.delete("/logs/{log_id}")
async def delete(log_id: _LogId, memory: Memory) -> dict[str, Any]:
    """Delete a log and what was derived from it."""
    await asyncio.to_thread(_found, memory, log_id)
    receipt = await asyncio.to_thread(memory.delete, log_id)
    return {"id": log_id, "deleted": bool(receipt.logs)}


def _record(memory: LogMemory, said: RunFeedback) -> None:
    if said.run_id is not None and said.outcome is not None:
        memory.feedback(said.run_id, outcome=said.outcome)
    elif said.log_ids is not None and said.helped is not None:
        memory.feedback(said.log_ids, helped=said.helped)


def _listed(memory: LogMemory, limit: int, offset: int) -> list[dict[str, Any]]:
    ledger = memory.store.ledger
    ids = ledger.newest_ids(ledger.mine, limit=offset + limit)[offset:]
    return [_as_dict(info) for page in ledger.pages(ids) for info in ledger.info(page)]


def _found(memory: LogMemory, log_id: str) -> LogInfo:
    found = memory.store.ledger.info([log_id])
    if not found:
        raise LogNotFoundError(f"There is no log {log_id}.")
    return found[0]


def _reply(document: dict[str, Any]) -> Response:
    # Metadata may hold numbers that JSON does not have.
    return Response(to_json(document, inf_nan_mode="null"), media_type="application/json")


def _as_dict(info: LogInfo) -> dict[str, Any]:
    fields = {name: value for name, value in vars(info).items() if name != "trace"}
    trace = info.trace
    return {
        **fields,
        "task": trace.task,
        "outcome": trace.outcome,
        "run_id": trace.id,
        "metadata": trace.metadata,
    }
