"""What is left of a deleted run: ``python -m benchmarks.forensics``.

A process answers with a memory, logs a run that holds a secret, and deletes it. After each step
another process looks for the secret in all bytes of the store, of a PostgreSQL server's files if
they are named, and of the first process's memory (Linux).
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lag_integrations import KVLogMemory, packaged
from lag_integrations.engine.engine import Engine
from lag_integrations.evaluation.machine import stamp
from lag_integrations.langchain import LAGChatModel
from lag_integrations.traces.trace import Trace

STEPS = ("logged", "deleted", "removed", "other work", "purged", "closed")
"""What the process does, in order; what is found after each is counted."""
_OTHERS = 30
_PIECE = 16 * 2**20

_OF_STORE = "files of the store"
_OF_SERVER = "files of the server"
_WRITE_AHEAD = "its write-ahead log"
_IN_MEMORY = "copies in memory"


def look(folder: Path, model: str, ledger: str | None, files: Path | None) -> dict[str, list[int]]:
    """Count a secret in files and memory after each of the `STEPS`.

    Args:
        folder: Where the store is to be.
        model: The model that answers.
        ledger: URL of a PostgreSQL database, if the ledger is to be there.
        files: The folder of that server.

    Returns:
        Files of the store and of the server that hold the secret, and its copies in memory.
        The server's write-ahead log is counted apart: only the server recycles it.
    """
    secret = f"zq{secrets.token_hex(12)}"
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, folder, model, ledger), daemon=True)
    process.start()
    found: dict[str, list[int]] = {
        name: [] for name in (_OF_STORE, _OF_SERVER, _WRITE_AHEAD, _IN_MEMORY)
    }
    for step in STEPS:
        ours.send((step, secret if step == "logged" else ""))
        ours.recv()
        found[_OF_STORE].append(len(_files_with(folder, secret)))
        served = [] if files is None else _files_with(files, secret)
        written_ahead = [path for path in served if "pg_wal" in path.parts]
        found[_WRITE_AHEAD].append(len(written_ahead))
        found[_OF_SERVER].append(len(served) - len(written_ahead))
        found[_IN_MEMORY].append(_copies(process.pid or 0, secret))
    process.join(60)
    return found


def _work(orders: Connection, folder: Path, model: str, ledger: str | None) -> None:
    engine = Engine.load(model)
    with closing(KVLogMemory(folder, ledger=ledger, min_score=-1.0)) as memory:
        chat = LAGChatModel(engine, memory=memory, temperature=0, max_tokens=8)
        for step in STEPS[:-1]:
            _, secret = orders.recv()
            if step == "logged":
                memory.add(_run(f"What is the password of {secret}?", f"It is {secret}."))
                memory.flush()
                chat.invoke(f"Tell me the password of {secret}.")
                secret = ""
            elif step == "deleted":
                memory.delete(list(memory.store.ledger.ids()))
            elif step == "removed":
                memory.flush()
            elif step == "other work":
                for number in range(_OTHERS):
                    memory.add(_run(f"What is thing {number}?", f"Thing {number} is {number * 7}."))
                    chat.invoke(f"Tell me of thing {number}.")
            else:
                memory.purge()
            orders.send(step)
    orders.recv()
    orders.send(STEPS[-1])
    orders.close()


def _run(question: str, answer: str) -> Trace:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Trace.from_messages(messages, outcome="success")


def _files_with(folder: Path, secret: str) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and secret.encode() in path.read_bytes()
    ]


def _copies(process: int, secret: str) -> int:
    """Count a text in the memory of a process, as UTF-8 and as UTF-16."""
    words = (secret.encode(), secret.encode("utf-16-le"))
    return sum(piece.count(word) for piece in _memory(process) for word in words)


def _memory(process: int) -> Iterator[bytes]:
    """Yield what a process can write to, in pieces that overlap by 64 bytes."""
    try:
        maps = Path(f"/proc/{process}/maps").read_text().splitlines()
        with open(f"/proc/{process}/mem", "rb", buffering=0) as memory:
            for line in maps:
                place = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
                if place is None:
                    continue
                begin, end = (int(one, 16) for one in place.groups())
                for start in range(begin, end, _PIECE):
                    try:
                        memory.seek(start)
                        yield memory.read(min(_PIECE + 64, end - start))
                    except (OSError, OverflowError):  # of the kernel's own
                        break
    except FileNotFoundError:  # it has ended
        return


def main() -> None:
    """Look, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forensics", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--ledger", help="URL of an empty PostgreSQL database.")
    parser.add_argument("--files", type=Path, help="The folder of that server.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = str(packaged.resolve(options.model))
        found = look(Path(folder) / "m", model, options.ledger, options.files)
    table = Table(title="Where a deleted secret is found", caption=stamp())
    for name in ("after", *found):
        table.add_column(name, justify="left" if name == "after" else "right")
    for number, step in enumerate(STEPS):
        table.add_row(step, *(str(counts[number]) for counts in found.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
