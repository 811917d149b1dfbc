"""The models that distil lessons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lag_integrations.memory.lessons.prompt import BEGIN
from lag_integrations.traces.message import Message

if TYPE_CHECKING:
    from lag_integrations.engine.engine import Engine

_BYTES_A_TOKEN = 3
"""Of texts whose tokenizer is not known: English has more, so that a prompt is rather shorter."""


@dataclass(frozen=True)
class Teacher:
    """A model that distils lessons.

    Attributes:
        ask: Returns its answer to a prompt.
        count: Counts the tokens of a prompt.
        window: Most tokens of a prompt; None if that is not known.
        cancelled: Says whether the answer is not wanted any more.
    """

    ask: Callable[[str], str]
    count: Callable[[str], int]
    window: int | None
    cancelled: Callable[[], bool]

    @classmethod
    def of_function(cls, ask: Callable[[str], str], cancelled: Callable[[], bool]) -> Teacher:
        """Return any model as a teacher."""
        return cls(
            ask,
            lambda text: len(text.encode("utf-8", "replace")) // _BYTES_A_TOKEN + 1,
            None,
            cancelled,
        )

    @classmethod
    def of_engine(
        cls,
        engine: Engine,
        max_new_tokens: int,
        cache_salt: str,
        cancelled: Callable[[], bool],
    ) -> Teacher:
        """Return a wrapped model as a teacher; it answers greedily.

        Args:
            engine: The model.
            max_new_tokens: Most tokens of an answer.
            cache_salt: Whose prompts they are.
            cancelled: Says whether the answer is not wanted any more.
        """

        def ask(prompt: str) -> str:
            stream = engine.stream(
                [Message(role="user", content=prompt)],
                answer_prefix=BEGIN,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                cache_salt=cache_salt,
            )
            for _ in stream:
                if cancelled():
                    stream.close()
                    raise TimeoutError
            answer = stream.generation
            text = BEGIN + answer.text
            return _without_rest(text) if answer.finish_reason == "length" else text

        def count(prompt: str) -> int:
            return engine.count_tokens([Message(role="user", content=prompt)])

        return cls(ask, count, engine.window - max_new_tokens, cancelled)


def _without_rest(text: str) -> str:
    """Return a text that was cut off without its last line, or sentence, if there are others."""
    for end in ("\n", ". "):
        whole, found, _ = text.rstrip().rpartition(end)
        if found and whole.strip():
            return whole + end.rstrip()
    return text
