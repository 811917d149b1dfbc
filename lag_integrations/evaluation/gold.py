"""Traces made of what a dataset knows: gold decomposition, solution and answer."""

from __future__ import annotations

from string import ascii_uppercase

from lag_integrations.evaluation.questions import Question
from lag_integrations.traces.message import Message
from lag_integrations.traces.trace import Trace


def gold_trace(question: Question, *, brief: bool = False) -> Trace:
    """Return the trace of an agent that knew everything, in the paper's form.

    A round for each fact, in which it asks and is told, and one with the answer. A question of
    which only the answer is known gets the last round alone.

    Args:
        question: The question.
        brief: Whether the last response is the answer alone, without the facts.
    """
    task = "\n".join(filter(None, (question.text, question.lettered)))
    messages = [Message(role="user", content=task)]
    said = []
    for asked, answer in question.facts:
        need = f"To answer this, I need to know: {asked}\n<keywords>{asked}</keywords>"
        said.append(_fact(asked, answer))
        messages.append(Message(role="assistant", content=need))
        messages.append(Message(role="user", content=said[-1]))
    if question.solution:
        said.append(_sentence(question.solution))
    if brief:
        said = []
    said += _answer(question)
    messages.append(Message(role="assistant", content=" ".join(said)))
    return Trace.from_messages(
        messages,
        task=question.text,
        outcome="success",
        metadata={"question_id": question.id, "made_from": "gold"},
    )


def _fact(asked: str, answer: str) -> str:
    return _sentence(f"{asked} {answer}" if asked.endswith("?") else f"{asked}: {answer}")


def _answer(question: Question) -> list[str]:
    answer = question.answers[0]
    if not question.options:
        return [f"The answer is <ans>{answer}</ans>"]
    option = question.options[ascii_uppercase.index(answer)]
    return [
        _sentence(f"The right answer is option ({answer}), {option}"),
        f"The answer is <ans>({answer})</ans>",
    ]


def _sentence(text: str) -> str:
    """Return the text with a full stop, unless it ends like a sentence, maybe within quotes."""
    return text if text.rstrip("\"')”").endswith((".", "!", "?", "…")) else f"{text}."
