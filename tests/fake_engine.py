"""A real engine whose model says what a test tells it to, token by token."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from lag_integrations import Engine
from lag_integrations.engine.generation.sequence import Request, SequenceState
from tests.conftest import random_model
from tests.engine.tools.templates import QWEN

Answer = str | Callable[[str], str]


def calls(name: str, /, **args: Any) -> str:
    """What the model writes to call a tool."""
    call = json.dumps({"name": name, "arguments": args}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"


class FakeEngine(Engine):
    """Gives its answers in turn, the last one for ever; an answer may be a function of the prompt.

    Without answers, it is the random model that it is made of. All else is real: the prompt, the
    segments, the reading of what it writes.

    Attributes:
        prompts: What it was given, as text.
        injected: How many segments stood in each prompt.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(random_model(tokenizer).eval(), tokenizer, chat_template=QWEN)
        self.answers: list[Answer] = []
        self.prompts: list[str] = []
        self.injected: list[int] = []
        self._new_sequence = self._generator.new_sequence
        self._generator.new_sequence = self._tell  # type: ignore[method-assign]

    def says(self, *answers: Answer) -> None:
        """What it says from now on; what it was given before is forgotten."""
        self.answers, self.prompts, self.injected = list(answers), [], []

    def _tell(self, request: Request) -> SequenceState:
        prompt = self.tokenizer.decode(request.prompt_ids)
        self.prompts.append(prompt)
        self.injected.append(len(request.segments))
        if not self.answers:
            return self._new_sequence(request)
        answer = self.answers[min(len(self.prompts), len(self.answers)) - 1]
        text = answer if isinstance(answer, str) else answer(prompt)
        begun = prompt.rpartition("<|im_start|>assistant\n")[2]  # a call that it has to make
        tokens = [*self.tokens_of(text.removeprefix(begun)), min(self.end_tokens)]
        return _Told(tokens, request, self.tokenizer, self.end_tokens)


class _Told(SequenceState):
    def __init__(self, tokens: list[int], *args: Any) -> None:
        super().__init__(*args)
        self._told = tokens

    def _take_next(self, logits: Any) -> str:
        told, place = logits.clone(), len(self.generation.token_ids)
        if place < len(self._told):  # else held to more than it wants to say
            told[self._told[place]] = 1e6
        return super()._take_next(told)
