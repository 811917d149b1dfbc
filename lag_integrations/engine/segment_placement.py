"""Where segments stand among the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from lag_integrations.engine.log_texts import around_logs
from lag_integrations.engine.rendered import RenderedPrompt
from lag_integrations.errors import PromptError

Placement = Literal["before_turn", "before_question", "after_system", "before_prompt"]
"""Where segments stand. ``before_turn`` (the default): before the last user turn, like earlier
turns, but within it, before the question's line, where it is known to hold more than the question.
``before_question``: always within it, before its text or that line. ``after_system``: after the
system message. ``before_prompt``: before everything, as in the paper."""


def check_placement(placement: str) -> None:
    """Refuse what is no placement.

    Raises:
        PromptError: It is none; says which there are.
    """
    if placement not in get_args(Placement):
        known = ", ".join(get_args(Placement))
        raise PromptError(f"There is no placement {placement!r}; use one of {known}.")


def place_segments(
    prompt: RenderedPrompt,
    placement: Placement,
    *,
    question: str | None,
    segments: int,
    tokens_of: Callable[[str], list[int]],
) -> tuple[list[int], int]:
    """Return the tokens of a prompt, and the index at which segments stand among them.

    Args:
        prompt: The prompt.
        placement: Where the segments stand.
        question: The question's text, where the last user message holds more than that.
        segments: How many there are; within a turn, the prompt says where they begin and end.
        tokens_of: Tokenizes a text.

    Raises:
        PromptError: There is no such placement.
    """
    check_placement(placement)
    token_ids = prompt.token_ids
    if placement == "before_prompt":
        return token_ids, 0
    if placement == "after_system":
        return token_ids, prompt.head
    split = prompt.question(question)
    text_before = split > prompt.question()
    if placement == "before_turn" and not text_before:
        return token_ids, prompt.last_turn
    if segments:
        begin, end = map(tokens_of, around_logs(text_before))
        token_ids = [*token_ids[:split], *begin, *end, *token_ids[split:]]
        split += len(begin)
    return token_ids, split
