"""Embedders of several frameworks behind one interface: texts in, unit vectors out."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lag_integrations import packaged
from lag_integrations.errors import PackagedModelError, StoreError
from lag_integrations.runtime.loading_lock import loading
from lag_integrations.runtime.own_thread import in_own_thread

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Vectors = NDArray[np.float32]
_Function = Callable[[list[str]], Any]
_CACHED_QUERIES = 256
"""Queries whose embeddings are cached, for retries and repeated questions."""
DEFAULT_EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"

_sharing = threading.Lock()
_models: dict[str, SentenceTransformer] = {}
"""Models by name or folder, for as long as the process lasts."""


class Embedder:
    """Turns texts into unit vectors.

    Args:
        source: A sentence-transformers name or folder, a loaded ``SentenceTransformer``, LangChain
            ``Embeddings``, a LlamaIndex ``BaseEmbedding``, or any function from a list of texts to
            a list of vectors. A name or folder is loaded when it is first needed, once a process.
            The default is the packaged all-MiniLM-L6-v2, else the hub's.

    Raises:
        StoreError: The source is none of these.
    """

    def __init__(self, source: Any = None) -> None:
        source = default_embedder() if source is None else source
        self._functions: tuple[_Function, _Function] | None = None
        self._source = source
        self._lock = threading.Lock()  # the worker and a first recall may come at once
        self._embed_query = lru_cache(_CACHED_QUERIES)(self._embed_query_now)
        if isinstance(source, str | Path):
            self.name = str(source)
        else:
            self.name = str(getattr(source, "model_name", "") or type(source).__name__)
            self._functions = _functions_of(source)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Embed texts, fp32 ``[texts, dimension]``, each row of norm 1.

        Raises:
            StoreError: The embedder fails; behind an API, perhaps only now.
        """
        return self._units(texts, queries=False)

    def embed_query(self, text: str) -> Vectors:
        """Embed a query, fp32 ``[dimension]``, or return its cached embedding.

        Some models embed queries in another way than documents.

        Raises:
            StoreError: As for `embed`, or the vector is zero or not finite.
        """
        return self._embed_query(text)

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """Embed queries, fp32 ``[texts, dimension]``, without caching them.

        Raises:
            StoreError: As for `embed`.
        """
        return self._units(texts, queries=True)

    def forget_queries(self) -> None:
        """Empty the cache of queries."""
        self._embed_query.cache_clear()

    def _embed_query_now(self, text: str) -> Vectors:
        vector = np.asarray(self._units([text], queries=True)[0])
        if not np.linalg.norm(vector) > 0.5:  # an exception is not cached
            raise StoreError(
                f"The embedder {self.name!r} gave a vector for the query that is zero or not "
                "finite."
            )
        vector.flags.writeable = False  # shared by all who ask
        return vector

    def _loaded(self) -> tuple[_Function, _Function]:
        with self._lock:
            if self._functions is None:
                self._functions = _functions_of(_shared(self._source))
            return self._functions

    def _units(self, texts: Sequence[str], *, queries: bool) -> Vectors:
        try:
            of_documents, of_queries = self._loaded()
            embed = of_queries if queries else of_documents
            found = in_own_thread(lambda: embed(list(texts)))
            vectors = np.asarray(found, dtype=np.float32)
        except StoreError:
            raise
        except Exception as error:
            # The name only: others' messages may repeat the text.
            raise StoreError(
                f"The embedder {self.name!r} failed ({type(error).__name__}). Where it asks a "
                "service, see whether that is up."
            ) from error
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise StoreError(
                f"The embedder {self.name!r} gave an array of shape {vectors.shape} for "
                f"{len(texts)} texts; it must give one vector a text."
            )
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)


def default_embedder() -> str | Path:
    """Return the packaged all-MiniLM-L6-v2, or its name on the hub."""
    try:
        return packaged.embedder()
    except PackagedModelError:
        return DEFAULT_EMBEDDER


def _shared(source: str | Path) -> SentenceTransformer:
    """Return the model of a name or folder. All memories of this process share it."""
    key = os.path.realpath(source) if os.path.isdir(source) else str(source)
    with _sharing:
        if key not in _models:
            _models[key] = load_embedder(source)
        return _models[key]


def load_embedder(
    source: str | Path | None = None, *, trust_remote_code: bool = False
) -> SentenceTransformer:
    """Load a sentence-transformers model.

    Args:
        source: Its name or folder; the default embedder by default.
        trust_remote_code: Let it run its own code.

    Raises:
        StoreError: There is no such model, or it cannot be loaded.
    """
    from sentence_transformers import SentenceTransformer

    source = source or default_embedder()
    try:
        with loading(source):
            return SentenceTransformer(str(source), trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"The embedder {str(source)!r} cannot be loaded. Pass embedder=… with the name or "
            f"folder of a sentence-transformers model, or an embedding object. ({error})"
        ) from error


def _functions_of(source: Any) -> tuple[_Function, _Function]:
    """Return the functions that embed documents and queries."""
    if hasattr(source, "embed_documents"):  # LangChain
        return source.embed_documents, partial(_one_by_one, source.embed_query)
    if hasattr(source, "get_text_embedding_batch"):  # LlamaIndex
        return source.get_text_embedding_batch, partial(_one_by_one, source.get_query_embedding)
    if hasattr(source, "encode_query"):  # sentence-transformers
        settings = {"show_progress_bar": False, "convert_to_numpy": True}
        return partial(source.encode_document, **settings), partial(source.encode_query, **settings)
    if callable(source):
        return source, source
    raise StoreError(
        f"A {type(source).__name__} cannot be used as an embedder. Pass the name of a "
        "sentence-transformers model, or an object with embed_documents."
    )


def _one_by_one(function: Callable[[str], Any], texts: Sequence[str]) -> list[Any]:
    return [function(text) for text in texts]
