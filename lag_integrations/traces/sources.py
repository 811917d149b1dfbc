"""The documents that a run was shown, and whether those shown now say that they changed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

SOURCES = "sources"
"""Metadata key of a trace under which the documents stand that its run was shown."""


@dataclass(frozen=True)
class Source:
    """A piece of a document, as it was shown to a model.

    Attributes:
        id: Id of the piece, if it has one.
        documents: Names of its document; `version` is of the first.
        hash: Hash of its content.
        version: Hash of the whole document, where that is known.
        score: How well it fitted the query, where that is known.
    """

    id: str | None
    documents: tuple[str, ...]
    hash: str
    version: str | None = None
    score: float | None = None

    def to_json(self) -> dict[str, JsonValue]:
        """Return it as it stands in a trace's metadata."""
        return {
            "id": self.id,
            "documents": list(self.documents),
            "hash": self.hash,
            "version": self.version,
            "score": self.score,
        }


def hash_of(content: str) -> str:
    """Return the hash of a content."""
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def names_in(items: Iterable[Any]) -> list[Any]:
    """Return the ids and documents of sources, as they stand in a trace's metadata.

    What is no source stays as it is: the metadata may be a user's own.
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
    """Return whether the sources shown now tell that a known one was changed, or is gone.

    A source whose content is shown is as it was. Any other was changed if its id is shown, with
    another content then, or another version of its document. Where versions are not known (or are
    those of parts of a file, of which only the file's name is the same), it counts as changed if
    its document is shown, but no known piece of it under its id and with its content: the document
    was put in again. A document that is not shown tells nothing.
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
    """Read what `Source.to_json` wrote; None if it is something else."""
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
