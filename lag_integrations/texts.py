"""Recalled logs as text: for documents, tools, and models whose KV cache cannot be reached."""

from __future__ import annotations

from collections.abc import Sequence

from lag_integrations.memory import RecalledLog
from lag_integrations.trace import Trace

MAX_CHARS = 6_000
"""Of recalled text in a prompt: about 1,500 tokens."""


def log_text(log: Trace) -> str:
    """What was asked, and what the last response was."""
    task, answer = log.task.strip(), log.last_response.strip()
    if not answer:  # the run ended with an action
        answer = next(
            (
                ", ".join(f"{call.name}({call.args})" for call in message.tool_calls)
                for message in reversed(log.messages)
                if message.tool_calls
            ),
            "",
        )
    return f"Task: {task}\nAnswer: {answer}" if task else answer


def logs_text(logs: Sequence[RecalledLog], max_chars: int) -> tuple[str, list[str]]:
    """As many logs as fit, best first, and their ids.

    The worst go first; a best one that is too long by itself is cut.
    """
    parts: list[str] = []
    room = max_chars
    for number, log in enumerate(logs, 1):
        part = f"[{number}] {log_text(log.log)}"
        if len(part) > room:
            if not parts and room > 0:
                parts.append(f"{part[: room - 1]}…")
            break
        parts.append(part)
        room -= len(part) + 2
    return "\n\n".join(parts), [log.id for log in logs[: len(parts)]]
