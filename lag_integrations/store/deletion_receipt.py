"""Receipts of deletions: what was removed, and what remains for how long."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RemainingData:
    """Data of deleted logs that are not gone yet.

    Attributes:
        what: What it is, and where.
        until: Until when.
    """

    what: str
    until: str

    def __str__(self) -> str:
        return f"{self.what}: until {self.until}"


@dataclass(frozen=True)
class DeletionReceipt:
    """What a deletion did. It does not know of exports, backups and other copies.

    Attributes:
        ids: The deleted logs, ascending.
        removed: Where they are gone from.
        remains: What remains of them for a while.
    """

    ids: tuple[str, ...]
    removed: tuple[str, ...]
    remains: tuple[RemainingData, ...]

    @property
    def logs(self) -> int:
        """The number of deleted logs."""
        return len(self.ids)


OTHER_PROCESSES = RemainingData("what other processes hold in memory", "they next use this memory")
UNSWEPT = RemainingData(
    "segment files and index entries", "the worker has removed them, or flush()"
)
VECTORS = RemainingData("vectors in the files of the index", "purge() or reindex()")
SERVER_VECTORS = RemainingData(
    "vectors in the files of the Chroma server", "it is vacuumed (chroma vacuum)"
)
JOURNAL = RemainingData("rows in the ledger's journal", "others stop reading it")
DEAD_ROWS = RemainingData("dead rows in PostgreSQL's tables", "the server vacuums them, or purge()")
WRITE_AHEAD_LOG = RemainingData("PostgreSQL's write-ahead log", "the server recycles it")


def unwritten(reason: str) -> RemainingData:
    """Return what a server keeps if its tables could not be rewritten."""
    return RemainingData(
        f"dead rows in the ledger's tables ({reason})", "VACUUM FULL by their owner"
    )


def backup(path: object) -> RemainingData:
    """Return that there is a copy from before a migration."""
    return RemainingData(f"the copy {path} from before a migration", "you remove it")
