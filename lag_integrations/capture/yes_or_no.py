"""A judge that asks a model, whichever the framework."""

from __future__ import annotations

import re
from collections.abc import Callable

from lag_integrations.capture.judges import uncaptured
from lag_integrations.traces.trace import Trace

_PROMPT = (
    "Does the answer solve the task? Reply with one word: yes or no.\n\n"
    "Task:\n{task}\n\nAnswer:\n{answer}"
)
_WORD = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)


class YesOrNo:
    """A judge that asks a model; the base of each framework's `LLMJudge`.

    Args:
        ask: Gives the model's reply to a question.
        prompt: The question, with ``{task}`` and ``{answer}`` in it.

    Raises:
        ValueError: The prompt does not have the two places.
    """

    def __init__(self, ask: Callable[[str], str], prompt: str | None = None) -> None:
        prompt = _PROMPT if prompt is None else prompt
        for place in ("{task}", "{answer}"):
            if place not in prompt:
                raise ValueError(f"The judge's prompt has no {place}; say where it shall stand.")
        self._ask = ask
        self._prompt = prompt

    def __call__(self, trace: Trace) -> bool | None:
        """True or False; None if the model's reply is neither yes nor no."""
        texts = {"{task}": trace.task, "{answer}": trace.last_response}
        # At once: a task may well hold the word "{answer}".
        prompt = re.sub(r"\{task\}|\{answer\}", lambda place: texts[place[0]], self._prompt)
        with uncaptured():
            reply = self._ask(prompt)
        word = _WORD.search(_THOUGHT.sub("", reply))
        return None if word is None else word[0].lower() == "yes"
