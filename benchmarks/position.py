"""Logs wherever they stand: ``python -m benchmarks.position --data DIR``.

The last turns of gold logs (MuSiQue) are injected for their own questions, at attention temperature
1: once at positions from 0 to the end of the model's window with nothing before them, and once
behind up to 4,000 tokens of documents that have nothing to do with them, where the same tokens are
also read as text. An answer is right if the model, always taking the likeliest token, says the gold
answer. Logits are those with which it does; their distance is the largest difference to the first
row, or to those with text.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import DynamicCache

from lag_integrations import packaged
from lag_integrations.engine.engine import Engine
from lag_integrations.engine.token_selection import LastTurn
from lag_integrations.evaluation.agent_loop import Run, prompt
from lag_integrations.evaluation.datasets import load
from lag_integrations.evaluation.documents import document_text
from lag_integrations.evaluation.gold import gold_trace
from lag_integrations.evaluation.machine import stamp
from lag_integrations.evaluation.questions import Document, Question
from lag_integrations.kv.cache import append_layer, new_cache, read_layers
from lag_integrations.kv.forward import prefill
from lag_integrations.kv.inject import inject
from lag_integrations.kv.segment import Segment
from lag_integrations.traces.message import Message

_BEHIND = (0, 500, 1_000, 2_000, 4_000)
_PARTS = 8


@dataclass(frozen=True)
class Case:
    """A question with its own log.

    Attributes:
        segment: The log's last turn.
        before: Tokens from the start of the user's turn to where logs stand.
        after: Tokens from there to the beginning of the answer.
        gold: Tokens of the gold answer and its end.
    """

    segment: Segment
    before: tuple[int, ...]
    after: tuple[int, ...]
    gold: tuple[int, ...]


@dataclass
class Outcome:
    """How the cases went at one place."""

    right: int
    logits: list[torch.Tensor]

    def distance(self, other: Outcome) -> float:
        """Return the largest difference of a logit, the median over the cases."""
        largest = [
            float((mine - others).abs().max())
            for mine, others in zip(self.logits, other.logits, strict=True)
        ]
        return float(torch.tensor(largest).median())


def main() -> None:
    """Run both and print their tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.position", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with musique/")
    parser.add_argument("--model", help="hub id or folder; the packaged SmolLM2 by default")
    parser.add_argument("--questions", type=int, default=50, help="how many")
    arguments = parser.parse_args()
    questions = load("musique", arguments.data, limit=arguments.questions).seen
    documents = load("musique_closed", arguments.data).documents
    engine = Engine.load(packaged.resolve(arguments.model))
    cases = [case_of(engine, question) for question in track(questions, "Encoding the logs")]
    console = Console(width=100)
    console.print(_alone(engine, cases), _behind(engine, cases, documents))
    console.print(f"{stamp()} · {engine.name}")


def case_of(engine: Engine, question: Question) -> Case:
    """Encode a question's gold log, and render the question."""
    chat = [Message(role="user", content=prompt(Run(question), (), direct=True))]
    segment = engine.encode(gold_trace(question), LastTurn())
    request = engine.request(chat, [segment], question=question.text, answer_prefix="<ans>")
    ids = request.prompt_ids
    return Case(
        segment,
        tuple(ids[: request.split]),
        tuple(ids[request.split :]),
        (*engine.tokens_of(question.answers[0]), engine.tokens_of("</ans>")[0]),
    )


def _alone(engine: Engine, cases: Sequence[Case]) -> Table:
    """Measure the segment first of all, at positions up to the window's end."""
    longest = max(len(case.segment) + len(case.after) + len(case.gold) for case in cases)
    last = engine.window - longest
    table = Table("position of the log", "right", "distance of logits")
    table.title = f"{len(cases)} logs with nothing before them"
    first = None
    for place in [last * part // _PARTS for part in range(_PARTS + 1)]:
        outcome = Outcome(0, [])
        for case in track(cases, f"At {place}"):
            cache = new_cache()
            end = _inject(engine, case, cache, place)
            _answer(engine, case, cache, end, outcome)
        first = first or outcome
        _show(table, str(place), len(cases), outcome.right, outcome.distance(first))
    return table


def _behind(engine: Engine, cases: Sequence[Case], documents: Sequence[Document]) -> Table:
    """Measure the segment behind documents, as KV and as text."""
    table = Table("tokens before", "right, KV", "right, text", "distance of logits, KV and text")
    table.title = f"{len(cases)} logs behind documents that do not matter"
    told = engine.tokens_of("\n\n".join(document_text(document) for document in documents[:200]))
    for count in _BEHIND:
        text = engine.tokenizer.decode(told[:count])
        head = engine.chat_template.render([Message(role="system", content=text)], generate=False)
        cache = new_cache()
        with torch.no_grad():
            prefill(engine.model, torch.tensor(head.token_ids), cache)
        read, start = read_layers(cache), len(head.token_ids)
        injected, as_text = Outcome(0, []), Outcome(0, [])
        for case in track(cases, f"Behind {count}"):
            for outcome, is_text in ((injected, False), (as_text, True)):
                mine = new_cache()
                for layer, slots in enumerate(read):
                    append_layer(mine, layer, slots)
                turn = _turn(engine, case)
                tokens = [*turn, *(case.segment.token_ids.tolist() if is_text else [])]
                with torch.no_grad():
                    prefill(engine.model, torch.tensor(tokens), mine)
                end = start + len(tokens)
                if not is_text:
                    end = _inject(engine, case, mine, end)
                _answer(engine, case, mine, end, outcome)
        _show(
            table, str(count), len(cases), injected.right, as_text.right, injected.distance(as_text)
        )
    return table


def _inject(engine: Engine, case: Case, cache: DynamicCache, start: int) -> int:
    """Inject the log at a position, and return the position after it."""
    identity = engine.fingerprint.id
    return inject(cache, engine.positions, [case.segment], start=start, fingerprint=identity)


def _turn(engine: Engine, case: Case) -> Sequence[int]:
    """Return the user's turn up to the log, without a system message of the template."""
    chat = [Message(role="system", content="x"), Message(role="user", content="x")]
    rendered = engine.chat_template.render(chat)
    header = rendered.token_ids[rendered.spans[1].start : rendered.spans[1].content_start]
    plain = engine.chat_template.render([Message(role="user", content="x")])
    return [*header, *case.before[plain.spans[-1].content_start :]]


def _answer(engine: Engine, case: Case, cache: DynamicCache, start: int, outcome: Outcome) -> None:
    """Read the question after a cache, and the gold answer; see whether that is what it says."""
    tokens = torch.tensor([[*case.after, *case.gold]], device=engine.model.device)
    places = torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]
    with torch.no_grad():
        output = engine.model(
            input_ids=tokens, position_ids=places, past_key_values=cache, use_cache=True
        )
    logits = output.logits[0, -len(case.gold) - 1 : -1].float().cpu()
    outcome.right += logits.argmax(-1).tolist() == list(case.gold)
    outcome.logits.append(logits)


def _show(table: Table, place: str, count: int, *found: float) -> None:
    *right, distance = found
    table.add_row(place, *(f"{one / count:.0%}" for one in right), f"{distance:.1e}")


if __name__ == "__main__":
    main()
