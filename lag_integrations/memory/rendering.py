"""Recalled logs as text: for documents, tools, and models whose KV cache cannot be reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lag_integrations.memory.results import RecalledLog
from lag_integrations.traces.message import Message
from lag_integrations.traces.trace import Trace

MAX_CHARS = 6_000
"""Of recalled text in a prompt: about 1,500 tokens."""

HEADING = (
    "Similar tasks were solved before, the most similar first. Use what helps; they may differ "
    "from the present task.\n\n"
)
"""What stands before recalled text in a prompt."""


def log_text(log: Trace) -> str:
    """Return what was asked, and what the last response was."""
    task, answer = log.task.strip(), log.last_response.strip()
    if not answer:  # the run ended with an action
        answer = next(
            (
                ", ".join(call.text for call in message.tool_calls)
                for message in reversed(log.messages)
                if message.tool_calls
            ),
            "",
        )
    return f"Task: {task}\nAnswer: {answer}" if task else answer


def _text(log: RecalledLog) -> str:
    """Return what was asked, and what is meant of it: the last response, a step, or some."""
    if log.step is None and not log.without_answer:
        return log_text(log.trace)
    name = "Steps" if log.step is None else "Step"
    return f"Task: {log.trace.task.strip()}\n{name}: {log.text}"


def log_metadata(log: RecalledLog) -> dict[str, Any]:
    """Return what a document or node says of its log, besides the text."""
    return {
        **log.trace.metadata,
        "log_id": log.id,
        "score": log.score,
        "task": log.trace.task,
        "outcome": log.trace.outcome,
        "started_at": log.trace.started_at.isoformat(),
    }


def logs_texts(logs: Sequence[RecalledLog], max_chars: int) -> list[str]:
    """Return the texts of as many logs as fit, best first.

    The worst go first; a best one that is too long by itself is cut.
    """
    parts: list[str] = []
    room = max_chars
    for number, log in enumerate(logs, 1):
        part = f"[{number}] {_text(log)}"
        if len(part) > room:
            if not parts and room > 0:
                parts.append(f"{part[: room - 1]}…")
            break
        parts.append(part)
        room -= len(part) + 2
    return parts


def logs_text(logs: Sequence[RecalledLog], max_chars: int) -> tuple[str, list[str]]:
    """Return as many logs as fit (see `logs_texts`) in one text, and their ids."""
    parts = logs_texts(logs, max_chars)
    return "\n\n".join(parts), [log.id for log in logs[: len(parts)]]


def without_texts(step: Message, texts: Mapping[str, str]) -> Message:
    """Replace recalled texts in a step; what the assistant said stays."""
    if not texts or step.role == "assistant":
        return step

    def clean(part: Any) -> Any:
        if isinstance(part, str):
            for text, log_id in texts.items():
                part = part.replace(text, f"[recalled log: {log_id}]")
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            return {**part, "text": clean(part["text"])}
        return part

    content = step.content
    cleaned = clean(content) if isinstance(content, str) else [clean(part) for part in content]
    return step if cleaned == content else step.model_copy(update={"content": cleaned})
