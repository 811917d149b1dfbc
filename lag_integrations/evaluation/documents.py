"""The documents that agents search."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice

import numpy as np

from lag_integrations.evaluation.questions import Document
from lag_integrations.store.embedder import Embedder


class Documents:
    """Documents by the similarity of their embeddings, as in the paper.

    Args:
        documents: The documents.
        embedder: Embeds them once, and each query.
    """

    def __init__(self, documents: Sequence[Document], embedder: Embedder) -> None:
        self._documents = documents
        self._embedder = embedder
        texts = [document_text(document) for document in documents]
        self._vectors = embedder.embed(texts) if texts else np.zeros((0, 0), np.float32)

    def search(self, query: str, k: int, known: Collection[str] = ()) -> list[Document]:
        """Return the nearest documents that are not known yet, nearest first."""
        if not self._documents or k < 1:
            return []
        scores = self._vectors @ self._embedder.embed_query(query).reshape(-1)
        found = (self._documents[int(place)] for place in np.argsort(-scores, kind="stable"))
        return list(islice((document for document in found if document.id not in known), k))


def document_text(document: Document) -> str:
    """Return a document as an agent reads it."""
    return f"{document.title}\n{document.text}".strip()
