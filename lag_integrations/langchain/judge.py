"""A language model that judges runs."""

from __future__ import annotations

import re

from langchain_core.language_models import BaseChatModel

from lag_integrations.judging import uncaptured
from lag_integrations.trace import Trace

_PROMPT = (
    "Does the answer solve the task? Reply with one word: yes or no.\n\n"
    "Task:\n{task}\n\nAnswer:\n{answer}"
)
_WORD = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)


class LLMJudge:
    """Asks a model whether the last response of a run solves its task.

    Its own calls are not captured.

    Example:
        .. code-block:: python

            handler = memory.callback_handler(judge=LLMJudge(model))

    Args:
        model: Any chat model.
        prompt: What it is asked, with ``{task}`` and ``{answer}`` in it; the reply has to begin
            with yes or no.

    Raises:
        ValueError: The prompt does not have the two places.
    """

    def __init__(self, model: BaseChatModel, prompt: str | None = None) -> None:
        prompt = _PROMPT if prompt is None else prompt
        for place in ("{task}", "{answer}"):
            if place not in prompt:
                raise ValueError(f"The judge's prompt has no {place}; say where it shall stand.")
        self._model = model
        self._prompt = prompt

    def __call__(self, trace: Trace) -> bool | None:
        """True or False; None if the model's reply is neither yes nor no."""
        texts = {"{task}": trace.task, "{answer}": trace.last_response}
        # At once: a task may well hold the word "{answer}".
        prompt = re.sub(r"\{task\}|\{answer\}", lambda place: texts[place[0]], self._prompt)
        with uncaptured():
            reply = self._model.invoke(prompt)
        word = _WORD.search(_THOUGHT.sub("", str(reply.text)))
        return None if word is None else word[0].lower() == "yes"
