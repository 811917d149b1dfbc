"""Answers to read: ``python -m benchmarks.answers --model NAME``.

Three captured runs (an access code, a shipping policy, a service catalogue) and five questions,
answered greedily with their KV as shipped, at attention temperature 1, with the last responses as
text, and without logs. Whatever a table says, a broken answer is seen at once.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from lag_integrations import KVLogMemory, packaged
from lag_integrations.engine.engine import Engine
from lag_integrations.evaluation.machine import stamp
from lag_integrations.langchain import LAGChatModel
from lag_integrations.traces.fluency import repetition
from lag_integrations.traces.trace import Trace

RUNS = (
    Trace.from_messages(
        [
            {
                "role": "user",
                "content": "The vault in Zurich was opened in 1998 by Ada Krenn. Its code is "
                "7431. What is the access code of the Zurich vault?",
            },
            {"role": "assistant", "content": "The access code of the Zurich vault is 7431."},
        ]
    ),
    Trace.from_messages(
        [
            {"role": "user", "content": "How do we ship fragile goods to Norway?"},
            {"role": "assistant", "content": "I will look at the shipping policy."},
            {
                "role": "user",
                "content": "Policy: to Norway by sea with Nordfrakt; fragile goods in pine crates, "
                "insured for 4,000 EUR.",
            },
            {
                "role": "assistant",
                "content": "Fragile goods go to Norway by sea with Nordfrakt, in pine crates, "
                "insured for 4,000 EUR.",
            },
        ]
    ),
    Trace.from_messages(
        [
            {
                "role": "user",
                "content": "Service catalogue: billing listens on port 9443 and is owned by team "
                "Heron; search listens on port 7700 and is owned by team Finch. Sum up the entry "
                "of billing.",
            },
            {
                "role": "assistant",
                "content": "The billing service listens on port 9443 and is owned by team Heron.",
            },
        ]
    ),
)
QUESTIONS = {
    "Which code opens the vault in Zurich?": ("7431",),
    "With which carrier do fragile goods go to Norway?": ("Nordfrakt",),
    "What port does the billing service listen on, and who owns it?": ("9443", "Heron"),
    "Write one sentence for a new colleague about how we ship fragile goods to Norway.": (
        "Norway",
        "Nordfrakt",
    ),
    "In which year was the vault in Zurich opened?": ("1998",),
}
"""Questions, and what an answer must hold."""

_WAYS: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "temperature 1": {"attention_temperature": 1.0},
    "text": {"logs_as_text": True},
    "no logs": {"k": 0},
}
_FLOOR = 0.3
"""Least similarity: what is asked here is the answer, not the recall."""


def answered(model: LAGChatModel, settings: Mapping[str, Any]) -> dict[str, str]:
    """Answer all questions with some settings of a call."""
    return {question: str(model.invoke(question, **settings).text) for question in QUESTIONS}


def is_right(question: str, answer: str) -> bool:
    """Whether an answer holds what it must."""
    return all(part in answer for part in QUESTIONS[question])


def main() -> None:
    """Answer, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.answers", description=__doc__)
    parser.add_argument("--model", help="packaged model, hub id or folder; SmolLM2 by default")
    arguments = parser.parse_args()
    engine = Engine.load(packaged.resolve(arguments.model))
    table = Table("question", *_WAYS, show_lines=True)
    with tempfile.TemporaryDirectory() as folder, KVLogMemory(folder, min_score=_FLOOR) as memory:
        model = LAGChatModel(engine, memory=memory, temperature=0, max_tokens=40)
        memory.attach(engine)
        memory.add_many(RUNS)
        memory.flush()
        found = {way: answered(model, settings) for way, settings in _WAYS.items()}
    for question in QUESTIONS:
        table.add_row(question, *(answers[question] for answers in found.values()))
    shares = [
        f"{sum(is_right(*item) for item in answers.items())} of {len(QUESTIONS)} right, repeated "
        f"{max(map(repetition, answers.values())):.2f} at most"
        for answers in found.values()
    ]
    table.add_row("", *shares)
    table.caption = f"{stamp()} · {engine.name}"
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
