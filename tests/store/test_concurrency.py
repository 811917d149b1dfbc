"""Many processes and threads at once on one folder."""

from __future__ import annotations

from pathlib import Path

from tests.store.conftest import logs_in_index
from tests.store.processes import adder, context, open_memory, reader, start

PROCESSES, THREADS, OWN, SHARED = 4, 4, 120, 20


def test_many_adders_and_readers(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    stop = context.Event()
    pipes, processes = [], []
    for target, arguments in [
        *((adder, (folder, number, THREADS, OWN, SHARED)) for number in range(PROCESSES)),
        *((reader, (folder, stop)) for _ in range(2)),
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
    with open_memory(folder) as memory:
        memory.flush()
        logs = memory.store.ledger.info()
        assert len(logs) == 2_000 == PROCESSES * THREADS * OWN + THREADS * SHARED
        shared = [log for log in logs if "door" in log.trace.task]
        assert len(shared) == THREADS * SHARED
        assert {log.times_seen for log in shared} == {PROCESSES}
        assert {log.times_seen for log in logs if log not in shared} == {1}
        assert logs_in_index(memory) == {log.id for log in logs}
        assert memory.verify() == []
    print(f"\n{len(logs)} logs, {recalls} recalls meanwhile")
