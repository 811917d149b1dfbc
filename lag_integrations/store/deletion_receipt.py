"""What a deletion removed, and what may remain of it for how long."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RemainingData:
    """Something of deleted logs that is not gone yet.

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
    """What a deletion did. Exports, backups and copies that anybody made are not known here.

    Attributes:
        ids: The logs that there were, ascending.
        removed: From where they are gone.
        remains: What is left of them for a while.
    """

    ids: tuple[str, ...]
    removed: tuple[str, ...]
    remains: tuple[RemainingData, ...]

    @property
    def logs(self) -> int:
        """How many logs were deleted."""
        return len(self.ids)


OTHERS = RemainingData("what other processes hold in memory", "they next use this memory")
UNSWEPT = RemainingData(
    "segment files and index entries", "the worker has removed them, or flush()"
)
VECTORS = RemainingData("vectors in the files of the index", "purge() or reindex()")
SERVED = RemainingData(
    "vectors in the files of the Chroma server", "it is vacuumed (chroma vacuum)"
)
JOURNAL = RemainingData("rows in the ledger's journal", "others stop reading it")
ROWS = RemainingData("dead rows in PostgreSQL's tables", "the server vacuums them, or purge()")
WRITE_AHEAD = RemainingData("PostgreSQL's write-ahead log", "the server recycles it")


def unwritten(reason: str) -> RemainingData:
    """Return what a server keeps of which the tables could not be written anew."""
    return RemainingData(
        f"dead rows in the ledger's tables ({reason})", "VACUUM FULL by their owner"
    )


def backup(path: object) -> RemainingData:
    """Return that a copy from before a migration is there."""
    return RemainingData(f"the copy {path} from before a migration", "you remove it")
