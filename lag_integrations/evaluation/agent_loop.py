"""The paper's agent: in each round it answers, or says what it needs to know next."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from pydantic import BaseModel, ConfigDict

from lag_integrations import KVLogMemory
from lag_integrations.engine.engine import Engine
from lag_integrations.engine.generation.sequence import Generation, Request
from lag_integrations.engine.segment_placement import Placement
from lag_integrations.errors import LAGError
from lag_integrations.evaluation.arms import Arm, Asked, AsText, Given
from lag_integrations.evaluation.as_text import read_as_text
from lag_integrations.evaluation.documents import Documents, document_text
from lag_integrations.evaluation.questions import Document, Question
from lag_integrations.evaluation.tags import ANSWER, KEYWORDS, SUBQUESTION, answer_of, query_of
from lag_integrations.memory.results import RecalledLog
from lag_integrations.traces.message import Message
from lag_integrations.traces.reserved_metadata import LESSON
from lag_integrations.traces.trace import Trace

_QA = (
    "Answer the question below from the information that you are given; do not guess.\n"
    "1. Write down the facts that matter to the question.\n"
    f"2. If they are enough, give a short answer, a few words, in <{ANSWER}></{ANSWER}>. If they "
    f"are not, give keywords to search for what is missing, in <{KEYWORDS}></{KEYWORDS}>."
)
_CHOICE = (
    "Answer the multiple-choice question below.\n"
    "1. Write down what matters to the question.\n"
    "2. Solve it step by step.\n"
    f"3. If you know which answer is right, give its letter: <{ANSWER}>(A)</{ANSWER}>. If you do "
    f"not, give questions that would help to find it, in <{SUBQUESTION}></{SUBQUESTION}>."
)
_SHORT = f"Answer the question in a few words. Wrap the answer in <{ANSWER}></{ANSWER}>."
_NUMBER = (
    "Answer the question with a number. Write down the calculation in one line, then give the "
    f"number in <{ANSWER}></{ANSWER}>."
)
_SHORT_CHOICE = (
    f"Answer the multiple-choice question with the letter of the right answer: "
    f"<{ANSWER}>(A)</{ANSWER}>."
)


# Prompts beyond the window or the memory, and traces that cannot be encoded.
_Errors = tuple[type[Exception], ...]
_TOO_MUCH: _Errors = (LAGError, torch.OutOfMemoryError)


class Loop(BaseModel):
    """How long an agent may work, and on what.

    Attributes:
        rounds: Most rounds (paper: 8 for multi-hop questions, 3 for reasoning).
        documents: Documents retrieved a round (paper: 2).
        k: Logs recalled a round (paper: 3).
        min_score: Least similarity of a log; None: the memory's own floor.
        max_tokens: Most tokens a round (paper: 1,024).
        placement: Where segments stand.
        best_last: Whether the most relevant log stands last.
        attention_temperature: Of the attention to segments; see `Engine.request`.
        direct: Whether a round begins with the answer's tag, so that there is nothing but the
            answer: for models that are too small to reason, and for quick runs.
        batch: Questions that are worked on at once.
        likelihood: Whether to find out how likely answers of one round would have been with the
            logs as text, which costs reading that once more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int
    documents: int
    k: int
    min_score: float | None
    max_tokens: int
    direct: bool = False
    placement: Placement | None = None
    best_last: bool = True
    attention_temperature: float | None = None
    batch: int = 1
    likelihood: bool = False


@dataclass
class Run:
    """What an agent did with one question.

    Attributes:
        question: The question.
        responses: What the model wrote, round by round.
        logs: The logs that were recalled, most relevant first.
        documents: The documents that were found, and in which round.
        answer: The answer, or None.
        error: Name of the error that ended it, if one did.
        log_likelihood: Of the response under the same model that reads the logs' last responses as
            text, nats a token; None if it was not asked for, or no log was given.
        time_to_first_token: Seconds to the first token; None of one that was not answered alone.
        seconds: Seconds of all of it; None of one that was not answered alone.
    """

    question: Question
    responses: list[str] = field(default_factory=list)
    logs: list[RecalledLog] = field(default_factory=list)
    documents: list[list[Document]] = field(default_factory=list)
    answer: str | None = None
    error: str | None = None
    log_likelihood: float | None = None
    computed_tokens: int = 0
    injected_tokens: int = 0
    generated_tokens: int = 0
    stored_bytes: int = 0
    time_to_first_token: float | None = None
    seconds: float | None = None

    def trace(self) -> Trace:
        """Return the run as a trace, without what was recalled."""
        messages: list[Message] = []
        for found, response in zip(self.documents, self.responses, strict=True):
            read = [document_text(document) for document in found]
            if not messages:
                read.append(question_text(self.question))
            messages.append(Message(role="user", content="\n\n".join(read) or "Go on."))
            messages.append(Message(role="assistant", content=response))
        return Trace(
            messages=tuple(messages),
            task=self.question.text,
            helped_by=tuple(log.id for log in self.logs),
            metadata={"question_id": self.question.id, "made_from": "self"},
        )


class Agent:
    """An agent that works on questions with logs in the form of an arm.

    Args:
        engine: The model.
        memory: The logs.
        arm: In which form the model gets them.
        documents: What can be searched.
        loop: How long it may work.
    """

    def __init__(
        self, engine: Engine, memory: KVLogMemory, arm: Arm, documents: Documents, loop: Loop
    ) -> None:
        self._engine = engine
        self._memory = memory
        self._arm = arm
        self._documents = documents
        self._loop = loop

    def _try(self, question: Question) -> Run | None:
        try:
            return self.run(question, too_much=(LAGError,))
        except torch.OutOfMemoryError:
            return None

    def run(self, question: Question, *, too_much: _Errors = _TOO_MUCH) -> Run:
        """Work on a question until it is answered, or the rounds are over.

        Args:
            question: The question.
            too_much: Errors after which the least relevant log is left out.
        """
        run = Run(question)
        started = time.perf_counter()
        query = question.text
        while run.answer is None and len(run.responses) < self._loop.rounds:
            begun = time.perf_counter()
            self._look_up(run, query)
            try:
                self._respond(run, begun, too_much)
            except too_much as error:
                _give_up(run, error)
                break
            query = query_of(run.responses[-1])
        run.seconds = time.perf_counter() - started
        return run

    def run_all(self, questions: Sequence[Question]) -> Iterator[Run]:
        """Work on questions, on as many at once as the loop says; yield the runs in their order.

        What a question takes alone is not measured where there are others, so that these runs have
        no seconds.
        """
        if self._loop.batch == 1:
            yield from map(self.run, questions)
            return
        pool = ThreadPoolExecutor(self._loop.batch)
        try:
            for question, run in zip(questions, pool.map(self._try, questions), strict=True):
                # With others it was too much for the memory; they have gone on, or come to an end.
                run = run or self.run(question)
                run.seconds = run.time_to_first_token = None
                yield run
        finally:
            pool.shutdown(cancel_futures=True)

    def _look_up(self, run: Run, query: str) -> None:
        """Logs and documents for a query that are not there yet."""
        known = {document.id for found in run.documents for document in found}
        run.documents.append(self._documents.search(query, self._loop.documents, known))
        if not self._arm.uses_logs or not self._loop.k:
            return
        if (given := self._given(run.question)) and not self._arm.uses_lessons:
            run.logs = [self._for_task(log, run.question) for log in given]
        else:
            logs = self._memory.recall(
                query,
                k=self._loop.k,
                min_score=self._loop.min_score,
                where=LESSON if self._arm.uses_lessons else None,
                newest_only=True,
                steps=self._arm.uses_steps,
                known={log.reference for log in run.logs},
                count=False,
            )
            run.logs += [self._for_task(log, run.question) for log in logs]
            run.logs.sort(key=lambda log: -(log.score or 0.0))

    def _for_task(self, log: RecalledLog, question: Question) -> RecalledLog:
        """Return what of a log is given where logs are given as they ship."""
        return log.for_task(question.text) if self._arm.as_shipped else log

    def _given(self, question: Question) -> list[RecalledLog]:
        """Return the log that a question is given whatever is recalled, if there is one."""
        if question.log_of is None:
            return []
        of = {"question_id": question.log_of}
        return self._memory.get(self._memory.store.ledger.having(of, limit=1))

    def _respond(self, run: Run, begun: float, too_much: _Errors = _TOO_MUCH) -> None:
        """Run a round, without the least relevant logs if it is too much for the model."""
        while True:
            given, request = self._fitting(run)
            stream = self._engine.start(request, begun)
            try:
                for _ in stream:
                    pass
            except too_much:
                if not run.logs:
                    raise
                run.logs.pop()
                continue
            if not run.responses:
                run.time_to_first_token = stream.generation.time_to_first_token
            if self._loop.likelihood and run.logs:
                run.log_likelihood = self._rated(run, stream.generation)
            return self._take(run, given, stream.generation)

    def _fitting(self, run: Run) -> tuple[Given, Request]:
        """Return the next request, without the least relevant logs if it does not fit."""
        while True:
            try:
                return self._request(run)
            except _TOO_MUCH:
                if not run.logs:
                    raise
                run.logs.pop()

    def _request(self, run: Run, arm: Arm | None = None) -> tuple[Given, Request]:
        """Return the next request, with the logs in the form of this arm or another."""
        documents = [document for found in run.documents for document in found]
        chat = [Message(role="user", content=prompt(run, documents, self._loop.direct))]
        logs = run.logs if self._loop.best_last else run.logs[::-1]
        asked = Asked(self._engine, self._memory, run.question, chat, self._loop.max_tokens)
        given = (arm or self._arm).give(asked, logs)
        request = self._engine.request(
            given.chat,
            given.segments,
            placement=self._loop.placement,
            attention_temperature=self._loop.attention_temperature,
            question=run.question.text,
            answer_prefix=f"<{ANSWER}>" if self._loop.direct else "",
            stop=[f"</{ANSWER}>"],
            max_new_tokens=self._loop.max_tokens,
            do_sample=False,
        )
        return given, read_as_text(request) if given.as_text else request

    def _rated(self, run: Run, generation: Generation) -> float | None:
        try:
            _, request = self._request(run, AsText())
        except _TOO_MUCH:
            return None
        tokens = generation.token_ids
        if not tokens:
            return None
        (found,) = self._engine.log_likelihoods([request], [tokens])
        return float(found[0].mean())

    def _take(self, run: Run, given: Given, generation: Generation) -> None:
        """Add what was answered to the run."""
        response = (f"<{ANSWER}>" if self._loop.direct else "") + generation.text
        # Generation stops before the tag that ends an answer.
        if f"<{ANSWER}>" in response and generation.finish_reason == "stop":
            response += f"</{ANSWER}>"
        run.responses.append(response)
        run.answer = answer_of(response, run.question)
        computed = generation.prompt_tokens - generation.reused_tokens
        run.computed_tokens += computed + given.computed_tokens
        run.injected_tokens += generation.injected_tokens
        run.stored_bytes = given.stored_bytes
        run.generated_tokens += len(generation.token_ids) + given.generated_tokens


def _give_up(run: Run, error: Exception) -> None:
    run.documents.pop()
    run.error = type(error).__name__


def question_text(question: Question) -> str:
    """Return a question as it is asked, with its options."""
    return f"Question: {question.text}" + ("\n" + question.lettered if question.options else "")


def prompt(run: Run, documents: Sequence[Document], direct: bool) -> str:
    """Return the prompt of a round: the task, what was found (and thought), the question last."""
    question = run.question
    known = [document_text(document) for document in documents]
    if question.options:
        parts = [_SHORT_CHOICE if direct else _CHOICE]
        # As in the paper, the reasoning of the last round is there to build on.
        known += run.responses[-1:]
    else:
        parts = [_SHORT if direct else _NUMBER if question.numeric else _QA]
    if known:
        parts.append("Information:\n" + "\n\n".join(known))
    return "\n\n".join([*parts, question_text(question)])
