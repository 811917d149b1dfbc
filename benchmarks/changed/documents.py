"""A handbook: sixty subjects of two short documents; the fact in one of them may change."""

from __future__ import annotations

from importlib.resources import files

from pydantic import BaseModel, ConfigDict

from benchmarks.asked import says


class Page(BaseModel):
    """A subject, and what is asked about it.

    Attributes:
        id: Its name, and the id of the document with the fact.
        text: What stands in it, with ``{fact}`` for the fact.
        more: What stands in another document on the same subject, which never changes.
        question: What the fact answers.
        fact: The fact.
        later: The fact after the change; None if it stays.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    text: str
    more: str
    question: str
    fact: str
    later: str | None

    @property
    def kind(self) -> str:
        """The row of a table in which its question counts."""
        return "unchanged" if self.later is None else "changed"

    def documents(self, changed: bool) -> list[tuple[str, str]]:
        """Return its documents, ids and texts, before the change or after it."""
        fact = self.later if changed and self.later is not None else self.fact
        return [(self.id, self.text.format(fact=fact)), (f"{self.id}-more", self.more)]

    def is_right_before(self, answer: str) -> bool:
        """Tell whether an answer is right before the change."""
        return _holds(answer, self.fact)

    def judge(self, answer: str) -> tuple[bool, bool | None]:
        """Tell whether an answer is right after the change, and whether it is what was before."""
        right = _holds(answer, self.later or self.fact)
        return right, None if self.later is None else not right and _holds(answer, self.fact)


def pages() -> list[Page]:
    """Return the subjects."""
    lines = files(__package__).joinpath("documents.jsonl").read_text("utf-8").split("\n")
    return [Page.model_validate_json(line) for line in lines if line]


_DIGITS = {
    word: str(number)
    for number, word in enumerate(
        ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"), 2
    )
}


def _holds(answer: str, fact: str) -> bool:
    other = _DIGITS.get(fact)
    pattern = fact.removeprefix("the ").replace(".", r"\.").replace("&", r"(?:&|and)")
    return says(answer, pattern if other is None else f"{pattern}|{other}")
