"""The documents of a dataset, in the layouts in which they are published."""

from __future__ import annotations

from pathlib import Path

from pydantic import AliasChoices, BaseModel, Field

from lag_integrations.evaluation.datasets.files import checked, read_json, read_rows
from lag_integrations.evaluation.questions import Document


class _Row(BaseModel):
    title: str
    # A text, or its sentences.
    text: str | list[str] = Field(validation_alias=AliasChoices("text", "content"))

    def document(self, id: str) -> Document:
        sentences = [self.text] if isinstance(self.text, str) else self.text
        return Document(id, self.title, " ".join(sentence.strip() for sentence in sentences))


def read_documents(path: Path | None) -> tuple[Document, ...]:
    """Read the documents in a JSON file; none, if there is no file.

    The file holds a list of ``{"title", "text"}``, which are numbered, or an object of documents by
    id: each with title and text (or ``content``), or a text alone, whose id is its title then.

    Raises:
        EvaluationError: It cannot be read, or holds something else.
    """
    if path is None:
        return ()
    values = read_json(path)
    if not isinstance(values, dict):
        return tuple(row.document(str(n)) for n, row in enumerate(read_rows(path, _Row)))
    places = (
        (
            f"{path}, entry {id!r}",
            value if isinstance(value, dict) else {"title": id, "text": value},
        )
        for id, value in values.items()
    )
    rows = checked(_Row, places)
    return tuple(row.document(id) for id, row in zip(values, rows, strict=True))
