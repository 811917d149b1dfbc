"""Logs as text within a conversation, where segments would stand."""

from __future__ import annotations

from collections.abc import Sequence

from lag_integrations.traces.message import Message


def with_texts(chat: Sequence[Message], texts: list[str], words: str | None) -> Sequence[Message]:
    """Return the conversation with texts before its last question, where segments would stand."""
    places = [place for place, message in enumerate(chat) if message.role == "user"]
    if not texts or not places:
        return chat
    question = chat[places[-1]]
    logs = "\n".join(texts)
    said = question.text
    place = line_of(words, said)
    begin, end = around_logs(place > 0)
    changed = question.model_copy(
        update={"content": said[:place] + begin + logs + end + said[place:]}
    )
    return [*chat[: places[-1]], changed, *chat[places[-1] + 1 :]]


def around_logs(text_before: bool) -> tuple[str, str]:
    """Return what stands before and after logs within a user's turn, be they segments or text.

    Behind instructions or documents, a model takes logs for a part of these, and answers a new case
    with the log's old answer: there it is told where logs begin and end (docs/evaluation.md).

    Args:
        text_before: Whether the turn says something before them.
    """
    if not text_before:
        return "", "\n"
    return "Earlier cases, solved before:\n", "\nNow a new case, with particulars of its own:\n"


def line_of(words: str | None, text: str) -> int:
    """Return where the last line begins that has some words in it; 0 if there is none."""
    place = text.rfind(words.strip()) if words and words.strip() else -1
    return 0 if place < 0 else text.rfind("\n", 0, place) + 1
