"""Full text search over logs, by the rare words of a query.

It uses SQLite's FTS5 or PostgreSQL's full text search in the ledger's database. Words are stored as
hashes that differ by namespace, so that no tenant can count another's words.
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

from lag_integrations.store.chunks import chunks
from lag_integrations.store.database import Database
from lag_integrations.store.ledger import Ledger
from lag_integrations.store.schema import lexical, logs
from lag_integrations.traces.terms import terms

_MAX_LOG_TERMS = 512
"""Most distinct words of a log."""
_MAX_QUERY_TERMS = 64
"""Most distinct words of a query."""
_MAX_RARE_LOGS = 500
"""Most logs that contain a word by which logs are searched."""
_MAX_SEARCH_TERMS = 8
"""Most words by which logs are searched: the rarest."""
_CACHED_FROM, _CACHE_SECONDS = 1_000, 60.0
"""Logs from which their number is cached, and for how long. Counting many takes time, and some more
hardly change how rare a word is."""

# By dialect: in how many logs words occur, counted up to a limit, and which logs contain one.
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
    """The words of one namespace's logs. Derived: stored with a log's embeddings.

    Args:
        database: The ledger's database.
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
        """Store the words of texts, by log id, without logs that were deleted meanwhile."""
        with self._db.write() as connection:
            alive = connection.execute(select(logs.c.id).where(logs.c.id.in_(texts))).scalars()
            rows = [
                {"log_id": key, "words": " ".join(self._hashed(texts[key], _MAX_LOG_TERMS))}
                for key in alive
            ]
            if rows:
                ids = [row["log_id"] for row in rows]
                connection.execute(delete(lexical).where(lexical.c.log_id.in_(ids)))
                connection.execute(insert(lexical), rows)

    def rarities(self, query: str) -> dict[str, float]:
        """Return the rarity of a query's words, from 0 to 1, by their stored hashes.

        Rarity is the inverse document frequency, divided by that of a word in no log.
        """
        words = self._hashed(query, _MAX_QUERY_TERMS)
        if not words:
            return {}
        found, number = self._frequencies(words), self._number()
        return {word: rarity(found.get(word, 0), number) for word in words}

    def candidates(self, rarities: Mapping[str, float], limit: int) -> list[str]:
        """Return the ids of logs that contain rare words of a query, best first."""
        least = rarity(_MAX_RARE_LOGS, self._number())
        rare = sorted((value, word) for word, value in rarities.items() if value >= least)
        found: defaultdict[str, float] = defaultdict(float)
        with self._db.read() as connection:
            for value, word in rare[::-1][:_MAX_SEARCH_TERMS]:
                values = {"word": word, "limit": _MAX_RARE_LOGS}
                for log_id in connection.execute(self._holding, values).scalars():
                    found[log_id] += value
        return sorted(found, key=lambda log_id: (-found[log_id], log_id))[:limit]

    def shared(self, rarities: Mapping[str, float], ids: Sequence[str]) -> dict[str, float]:
        """Return for each log the sum of the rarities of the query's words in it."""
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
        """Return in how many logs each word is."""
        # Words are hashes of ours, so that they can be put into the statement.
        quoted = ", ".join(f"'{word}'" for word in words)
        statement = text(_FREQUENCIES[self._db.dialect].format(words=quoted))
        values = {} if self._db.is_sqlite else {"limit": _MAX_RARE_LOGS + 1}
        with self._db.read() as connection:
            return {row[0]: row[1] for row in connection.execute(statement, values)}

    def _number(self) -> int:
        if self._logs < _CACHED_FROM or time.monotonic() - self._counted_at > _CACHE_SECONDS:
            self._logs, self._counted_at = self._ledger.count(), time.monotonic()
        return self._logs

    def _hashed(self, words: str, limit: int) -> list[str]:
        return [
            hashlib.blake2b(word.encode(), digest_size=6, key=self._salt).hexdigest()
            for word in terms(words)[:limit]
        ]


def rarity(holding: int, logs: int) -> float:
    """Return how rare a word is: 1 if no log contains it, near 0 if all do.

    Args:
        holding: Number of logs that contain it.
        logs: Number of all logs.
    """
    return math.log1p(logs / (holding + 0.5)) / math.log1p(logs / 0.5) if logs else 1.0


def shared_words(queries: Sequence[str], texts: Sequence[str]) -> NDArray[np.float64]:
    """Return what `LexicalIndex.shared` would return for some texts, ``[queries, texts]``."""
    held = [set(terms(text)[:_MAX_LOG_TERMS]) for text in texts]
    holding = Counter(word for words in held for word in words)
    asked = [set(terms(query)[:_MAX_QUERY_TERMS]) for query in queries]
    return np.array(
        [
            [sum(rarity(holding[word], len(texts)) for word in words & text) for text in held]
            for words in asked
        ]
    )
