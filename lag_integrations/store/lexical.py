"""Full text search over logs: which of them hold the words of a query, the rare ones first.

SQLite's FTS5, or PostgreSQL's full text search, in the ledger's database. Words are stored as
hashes that differ by namespace: what a tenant wrote cannot be counted in another's index.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import delete, insert, select, text

from lag_integrations.store.database import Database
from lag_integrations.store.ledger import Ledger, chunks
from lag_integrations.store.schema import lexical, logs
from lag_integrations.traces.terms import terms

_LOG_TERMS = 512
"""Most different words of a log."""
_QUERY_TERMS = 64
"""Most different words of a query."""
_RARE = 500
"""Logs in which a word may be, so that logs are looked for by it."""
_LOOKED_FOR = 8
"""Words by which logs are looked for: the rarest."""
_MANY, _COUNT_SECONDS = 1_000, 60.0
"""Logs from which their number is held, and for how long: to count them takes time, and some more
hardly change how rare a word is. Among few they do."""

# The two dialects: how often words occur, counted up to a limit, and which logs hold one.
_FREQUENCIES = {
    "sqlite": "SELECT term, doc FROM lexical_vocabulary WHERE term IN ({words})",
    "postgresql": (
        "SELECT word, (SELECT count(*) FROM (SELECT 1 FROM lexical"
        " WHERE words @@ word::tsquery LIMIT :limit) AS found)"
        " FROM unnest(ARRAY[{words}]::text[]) AS word"
    ),
}
_HOLDING = {
    "sqlite": (
        "SELECT log_id FROM lexical WHERE id IN"
        " (SELECT rowid FROM lexical_fts WHERE lexical_fts MATCH :word LIMIT :limit)"
    ),
    "postgresql": "SELECT log_id FROM lexical WHERE words @@ (:word)::tsquery LIMIT :limit",
}


class LexicalIndex:
    """The words of one namespace's logs. Derived: written with a log's embeddings.

    Args:
        database: Where they are kept.
        ledger: The logs.
    """

    def __init__(self, database: Database, ledger: Ledger) -> None:
        self._db = database
        self._ledger = ledger
        self._salt = ledger.namespace.encode()
        self._holding = text(_HOLDING[database.dialect])
        self._logs = 0
        self._counted_at = float("-inf")

    def add(self, texts: Mapping[str, str]) -> None:
        """Record the words of logs, by log id; logs that were deleted meanwhile are left out."""
        with self._db.write() as connection:
            alive = connection.execute(select(logs.c.id).where(logs.c.id.in_(texts))).scalars()
            rows = [
                {"log_id": key, "words": " ".join(self._hashed(texts[key], _LOG_TERMS))}
                for key in alive
            ]
            if rows:
                ids = [row["log_id"] for row in rows]
                connection.execute(delete(lexical).where(lexical.c.log_id.in_(ids)))
                connection.execute(insert(lexical), rows)

    def rarities(self, query: str) -> dict[str, float]:
        """Return a query's words as they are stored, and how rare each is, from 0 to 1.

        That is their inverse document frequency, as a part of that of a word that no log holds.
        """
        words = self._hashed(query, _QUERY_TERMS)
        if not words:
            return {}
        found, number = self._frequencies(words), self._number()
        return {word: rarity(found.get(word, 0), number) for word in words}

    def candidates(self, rarities: Mapping[str, float], limit: int) -> list[str]:
        """Return the ids of logs that hold most of a query's rare words, best first."""
        least = rarity(_RARE, self._number())
        rare = sorted((value, word) for word, value in rarities.items() if value >= least)
        found: defaultdict[str, float] = defaultdict(float)
        with self._db.read() as connection:
            for value, word in rare[::-1][:_LOOKED_FOR]:
                values = {"word": word, "limit": _RARE}
                for log_id in connection.execute(self._holding, values).scalars():
                    found[log_id] += value
        return sorted(found, key=lambda log_id: (-found[log_id], log_id))[:limit]

    def shared(self, rarities: Mapping[str, float], ids: Sequence[str]) -> dict[str, float]:
        """Return for each log how many of a query's words it holds, each as far as it is rare."""
        found: dict[str, float] = {}
        for chunk in chunks(ids):
            with self._db.read() as connection:
                rows = connection.execute(
                    select(lexical.c.log_id, lexical.c.words).where(lexical.c.log_id.in_(chunk))
                ).all()
            for log_id, words in rows:
                held = set(words.replace("'", "").split())  # PostgreSQL quotes them
                found[log_id] = sum(rarities[word] for word in held & rarities.keys())
        return found

    def _frequencies(self, words: Sequence[str]) -> dict[str, int]:
        """In how many logs each word is; only the few digits of our own hashes stand in it."""
        quoted = ", ".join(f"'{word}'" for word in words)
        statement = text(_FREQUENCIES[self._db.dialect].format(words=quoted))
        values = {} if self._db.is_sqlite else {"limit": _RARE + 1}
        with self._db.read() as connection:
            return {row[0]: row[1] for row in connection.execute(statement, values)}

    def _number(self) -> int:
        if self._logs < _MANY or time.monotonic() - self._counted_at > _COUNT_SECONDS:
            self._logs, self._counted_at = self._ledger.count(), time.monotonic()
        return self._logs

    def _hashed(self, words: str, limit: int) -> list[str]:
        return [
            hashlib.blake2b(word.encode(), digest_size=6, key=self._salt).hexdigest()
            for word in terms(words)[:limit]
        ]


def rarity(holding: int, logs: int) -> float:
    """Return how rare a word is: 1 if no log holds it, near 0 if all do.

    Args:
        holding: Logs that hold it.
        logs: Logs there are.
    """
    return math.log1p(logs / (holding + 0.5)) / math.log1p(logs / 0.5) if logs else 1.0


def shared_words(queries: Sequence[str], texts: Sequence[str]) -> NDArray[np.float64]:
    """Return what `LexicalIndex.shared` would for a store of some texts, ``[queries, texts]``."""
    held = [set(terms(text)[:_LOG_TERMS]) for text in texts]
    holding = Counter(word for words in held for word in words)
    asked = [set(terms(query)[:_QUERY_TERMS]) for query in queries]
    return np.array(
        [
            [sum(rarity(holding[word], len(texts)) for word in words & text) for text in held]
            for words in asked
        ]
    )
