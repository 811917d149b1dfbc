"""Many processes and threads at once on one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.store.conftest import logs_in_index
from tests.store.processes import adder, context, open_memory, reader, start

PROCESSES, THREADS = 4, 4


@pytest.mark.parametrize(
    ("own", "shared"),
    [(10, 5), pytest.param(120, 20, marks=pytest.mark.slow)],
    ids=["few", "many"],
)
@pytest.mark.parametrize("backend", ["local", "postgres"], indirect=True)
def test_many_adders_and_readers(
    tmp_path: Path, backend: dict[str, Any], own: int, shared: int
) -> None:
    folder, ledger = tmp_path / "m", backend.get("ledger")
    stop = context.Event()
    pipes, processes = [], []
    for target, arguments in [
        *((adder, (folder, ledger, number, THREADS, own, shared)) for number in range(PROCESSES)),
        *((reader, (folder, ledger, stop)) for _ in range(2)),
    ]:
        receive, send = context.Pipe(duplex=False)
        processes.append(start(target, *arguments, send))
        send.close()
        pipes.append(receive)
    try:
        for pipe in pipes[:PROCESSES]:
            assert pipe.poll(300), "an adder did not come to an end"
            assert pipe.recv() == []
        stop.set()
        recalls = 0
        for pipe in pipes[PROCESSES:]:
            assert pipe.poll(120), "a reader did not come to an end"
            number, found, errors = pipe.recv()
            assert errors == []
            assert found > 0
            recalls += number
    finally:
        for process in processes:
            process.kill()
            process.join()
    with open_memory(folder, ledger=ledger) as memory:
        memory.flush()
        logs = memory.store.ledger.info()
        assert len(logs) == PROCESSES * THREADS * own + THREADS * shared
        of_all = [log for log in logs if "door" in log.trace.task]
        assert len(of_all) == THREADS * shared
        assert {log.times_seen for log in of_all} == {PROCESSES}
        assert {log.times_seen for log in logs if log not in of_all} == {1}
        assert logs_in_index(memory) == {log.id for log in logs}
        assert memory.verify() == []
    print(f"\n{len(logs)} logs, {recalls} recalls meanwhile")
