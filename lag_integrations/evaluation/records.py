"""What an evaluation writes down: one line a question and arm, enough for all tables and plots."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from lag_integrations.errors import EvaluationError
from lag_integrations.evaluation.questions import Stratum


class Record(BaseModel):
    """How one arm did on one question.

    Attributes:
        arm: Name of the arm.
        question_id: The question.
        stratum: How near it is to the stored logs.
        answer: The final answer, or nothing if none was given.
        response: All that was written in the last round.
        answered_in: Round in which the answer was given, from 1; None if none was.
        exact_match: Whether it is a gold answer; for a multiple-choice question, accuracy.
        parroted: Whether it is the old answer of its log, and wrong; None if there is no such one.
        calculated: Whether the response writes down a calculation whose result is right, whatever
            the model makes of it; None where no number is asked for.
        f1: Best F1 with a gold answer, from 0 to 1.
        repetition: Share of runs of three words in the response that stood in it before; None if
            there is none.
        log_likelihood: Of the response under the same model that reads the logs as text, nats a
            token; None if it was not asked for, or no log was given.
        rounds: Rounds that were run.
        seconds: Wall-clock time of the question, recall and loading included; None if it was
            answered together with others.
        time_to_first_token: Seconds from the start of the first round to its first token, recall
            and loading included; None if there was none, or as above.
        computed_tokens: Prompt tokens the model read, all rounds.
        injected_tokens: Tokens whose KV was injected, all rounds.
        generated_tokens: Tokens it wrote, all rounds.
        stored_bytes: Bytes that the logs that were given last take in the store, in their form.
        logs: Questions (ids) of the logs that were given, best first; other logs by their log id.
        scores: Their similarities; none of logs that were not recalled.
        error: Why the question could not be worked on to its end, by the error's name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: str
    question_id: str
    stratum: Stratum
    answer: str = ""
    response: str = ""
    answered_in: int | None = None
    exact_match: bool
    f1: float
    parroted: bool | None = None
    calculated: bool | None = None
    repetition: float | None = None
    log_likelihood: float | None = None
    rounds: int
    seconds: float | None
    time_to_first_token: float | None
    computed_tokens: int
    injected_tokens: int
    generated_tokens: int
    stored_bytes: int
    logs: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    error: str | None = None


class Records:
    """The records in a file, and more to come.

    Args:
        path: The file; a line that a killed run left half-written is cut off.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        cut_to_lines(path)
        there = read([path]) if path.exists() else ()
        self._known = {(record.arm, record.question_id) for record in there}

    def __contains__(self, arm_and_question: tuple[str, str]) -> bool:
        return arm_and_question in self._known

    def add(self, record: Record) -> None:
        """Append a record."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(record.model_dump_json() + "\n")
        self._known.add((record.arm, record.question_id))


_Row = TypeVar("_Row", bound=BaseModel)
_Key = TypeVar("_Key", bound=Hashable)


class RecordFile(Generic[_Key, _Row]):
    """Rows of one kind in a JSONL file, each under a key, and more to come.

    Args:
        path: The file; a line that a killed run left half-written is cut off.
        kind: The class of the rows.
        key_of: Tells the key of a row.

    Raises:
        EvaluationError: The file holds something else.
    """

    def __init__(self, path: Path, kind: type[_Row], key_of: Callable[[_Row], _Key]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_to_lines(path)
        lines = path.read_text("utf-8").split("\n") if path.exists() else []
        try:
            known = [kind.model_validate_json(line) for line in lines if line]
        except ValidationError as error:
            raise EvaluationError(
                f"{path.name} holds what is no record of this evaluation; was it edited, or "
                f"written by another version? Remove it and run again. ({error})"
            ) from error
        self._path = path
        self._key_of = key_of
        self._known = {key_of(row): row for row in known}

    def __iter__(self) -> Iterator[_Row]:
        return iter(self._known.values())

    def __contains__(self, key: _Key) -> bool:
        return key in self._known

    def add(self, row: _Row) -> None:
        """Append a row."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(row.model_dump_json() + "\n")
        self._known[self._key_of(row)] = row


def cut_to_lines(path: Path) -> None:
    """Cut off a line that a killed run left half-written, so that the next one begins anew."""
    if path.exists():
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            path.write_bytes(whole)


def read(paths: Iterable[Path]) -> Iterator[Record]:
    """Read the records in some files, without a last line that was being written.

    Raises:
        EvaluationError: A file holds something else.
    """
    for path in paths:
        *lines, _ = path.read_text("utf-8").split("\n")
        for number, line in enumerate(lines, 1):
            try:
                yield Record.model_validate_json(line)
            except ValidationError as error:
                raise EvaluationError(
                    f"Line {number} of {path.name} is no record of an evaluation; was the file "
                    f"edited, or written by another version? Remove it and run again. ({error})"
                ) from error
