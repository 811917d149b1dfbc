"""Logs and questions that no other round has: what was read lately is not read again."""

from __future__ import annotations

import random
from dataclasses import dataclass

from lag_integrations import KVLogMemory
from lag_integrations.engine.engine import Engine
from lag_integrations.traces.message import Message
from lag_integrations.traces.trace import Trace

_WORDS = [
    *("survey", "harbour", "pier", "crane", "lighthouse", "paint", "keeper", "boat", "tide"),
    *("rope", "lantern", "chart", "storm", "anchor", "fish", "market", "bridge", "stone"),
    *("tower", "bell", "water", "north", "winter", "summer", "captain", "letter", "report"),
]


@dataclass(frozen=True)
class Task:
    """Logs of a round, and how to ask about them.

    Attributes:
        name: Of the round: no other has it.
        number: The round's.
        traces: The logs. The last turn of each has about so many tokens, and what stands before it
            as many again. Only that turn is kept here, so that all ways are of equal tokens.
    """

    name: str
    number: int
    traces: list[Trace]

    @classmethod
    def make(cls, engine: Engine, number: int, *, logs: int, tokens: int) -> Task:
        """Logs whose last turns have so many tokens together."""
        name = f"{logs} {tokens} {number}"
        chance = random.Random(name)
        each = tokens // logs
        traces = []
        for log in range(logs):
            question = f"What did survey {number} of harbour {log} find?"
            notes, answer = (_text(engine, chance, each - 8) for _ in range(2))
            content = f"{notes}\n\n{question}"
            traces.append(
                Trace.from_messages(
                    [
                        {"role": "user", "content": content},
                        {"role": "assistant", "content": answer},
                    ]
                )
            )
        return cls(name, number, traces)

    def question(self, way: str) -> Message:
        """Return a question of a way's own, since each must read it; all are equally long."""
        chance = random.Random(f"{self.name} {way}")
        first, *others = chance.choices(_WORDS, k=8)
        content = f"{first.title()}, {' '.join(others)}: what did the surveys of harbours find?"
        return Message(role="user", content=content)

    def store(self, memory: KVLogMemory) -> list[str]:
        """Store and encode the logs, and return their ids."""
        ids = memory.add_many(self.traces)
        memory.flush()
        return ids


def _text(engine: Engine, chance: random.Random, tokens: int) -> str:
    """Return a text of so many tokens."""
    words = " ".join(chance.choices(_WORDS, k=tokens + 8))
    return str(engine.tokenizer.decode(engine.tokens_of(words)[:tokens]))
