"""The documents that a run was shown, and whether they have changed since."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

SOURCES = "sources"
"""Metadata key of the documents that a run was shown."""


@dataclass(frozen=True)
class Source:
    """A piece of a document, as it was shown to a model.

    Attributes:
        id: Id of the piece, if it has one.
        documents: Names of its document, such as its id and path.
        hash: Hash of its content.
        version: Hash of the whole document, if known; of the first of `documents`.
        score: How well it fitted the query, if known.
    """

    id: str | None
    documents: tuple[str, ...]
    hash: str
    version: str | None = None
    score: float | None = None

    def to_json(self) -> dict[str, JsonValue]:
        """Return the JSON that a trace's metadata hold."""
        return {
            "id": self.id,
            "documents": list(self.documents),
            "hash": self.hash,
            "version": self.version,
            "score": self.score,
        }


def hash_of(content: str) -> str:
    """Return the hash of a document's content."""
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def names_in(items: Iterable[Any]) -> list[Any]:
    """Replace the sources in a list of JSON values by their ids and the names of their documents.

    Other values stay as they are: the metadata may be a user's own.
    """
    names: dict[str, None] = {}
    others: list[Any] = []
    for item in items:
        if (source := _read(item)) is None:
            others.append(item)
        else:
            names.update(dict.fromkeys((*source.documents, source.id or "")))
    return [*others, *(name for name in names if name)]


def sources_in(metadata: Mapping[str, JsonValue]) -> list[Source]:
    """Return the sources in a trace's metadata."""
    value = metadata.get(SOURCES)
    found = (_read(item) for item in (value if isinstance(value, list) else []))
    return [source for source in found if source is not None]


def is_outdated(known: Collection[Source], shown: Collection[Source]) -> bool:
    """Return whether a known source was changed or removed, judging by the sources shown now.

    - A source whose content is shown is unchanged.
    - A source is changed if its id is shown with another content, or if another version of its
      document is shown.
    - Without versions (or if they are of parts of a file that share only the file's name), a source
      is changed if its document is shown, but no known piece of the document with its id and
      content: then the document was indexed again.
    - A source whose document is not shown counts as unchanged.
    """
    hashes = {now.hash for now in shown}
    pieces = {(now.id, now.hash) for now in shown}
    intact = {name for one in known if (one.id, one.hash) in pieces for name in one.documents}
    return any(one.hash not in hashes and _is_contradicted(one, shown, intact) for one in known)


def _is_contradicted(source: Source, shown: Collection[Source], intact: set[str]) -> bool:
    if source.id is not None and any(now.id == source.id for now in shown):
        return True
    akin = [now for now in shown if not set(source.documents).isdisjoint(now.documents)]
    if source.version is not None:
        if any(now.version == source.version for now in akin):
            return False
        if any(now.version and now.documents[0] == source.documents[0] for now in akin):
            return True
    return bool(akin) and intact.isdisjoint(source.documents)


def _read(item: Any) -> Source | None:
    """Parse what `Source.to_json` returned; return None if it is something else."""
    if not isinstance(item, Mapping) or not isinstance(item.get("hash"), str):
        return None
    id, documents, version = item.get("id"), item.get("documents"), item.get("version")
    if not isinstance(documents, list):
        return None
    return Source(
        id if isinstance(id, str) else None,
        tuple(name for name in documents if isinstance(name, str)),
        item["hash"],
        version if isinstance(version, str) else None,
    )
