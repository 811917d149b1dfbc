"""Processes forked from one that had used Chroma: they work without it, and hang nobody."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.store.conftest import logs_in_index
from tests.store.processes import numbered, open_memory

PROGRAM = """
import gc, logging, os, sys, warnings
from lag_integrations import KVLogMemory
from lag_integrations.errors import ForkedError
from tests.store.model import hash_embedder, tiny_engine
from tests.store.processes import numbered

warnings.simplefilter("ignore")


def question(number):
    return f"What is the code of vault {number} ?"


def work(folder, embedder, state):
    settings = {"min_score": -1} | ({"embedder": hash_embedder} if embedder == "cheap" else {})
    memory = KVLogMemory(folder, **settings)
    memory.attach(tiny_engine())
    first = memory.add_many(numbered(number) for number in range(8))
    memory.flush()
    assert len(memory.recall(question(3))) == 3
    if state == "closed":
        memory.close()
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if state == "open":
            more = memory.add(numbered(900))
            memory.flush()
            assert memory.recall(question(900), k=1)[0].id == more
            memory.close()
        sys.exit(code)

    logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
    with KVLogMemory(folder, **settings) as mine:
        mine.attach(tiny_engine(1))
        added = mine.add_many(numbered(number) for number in range(100, 108))
        mine.flush()
        for number, key in ((3, first[3]), (7, first[7]), (103, added[3]), (107, added[-1])):
            assert mine.recall(question(number), k=1)[0].id == key
        assert len(mine.segments(mine.recall(question(103), k=3))) == 3
        assert mine.delete(first[0]).logs == 1
        for refused in (lambda: mine.verify(), lambda: mine.store.vectors.rebuild()):
            try:
                refused()
            except ForkedError:
                continue
            raise AssertionError("it was not refused")
        print("ready", flush=True)
        sys.stdin.readline()
    sys.exit()


# Each in a process that has used no Chroma yet; the libraries are imported once, and kept from the
# collector, which would have each process copy them when it ends.
gc.freeze()
for number, case in enumerate(sys.argv[2:]):
    child = os.fork()
    if not child:
        work(f"{sys.argv[1]}/{number}", *case.split())
    status = os.waitpid(child, 0)[1]
    print("ended", os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
def test_a_forked_process_works_and_hangs_nobody(tmp_path: Path) -> None:
    cases = ("cheap closed", "cheap open", "packaged closed")
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path), *cases],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    limit = threading.Timer(400, program.kill)
    limit.start()
    try:
        assert program.stdin is not None
        assert program.stdout is not None
        for number, case in enumerate(cases):
            said = []
            for line in program.stdout:
                said.append(line)
                if line == "ready\n" or line.startswith("ended"):
                    break
            assert said[-1:] == ["ready\n"], "".join(said)
            assert sum("all embeddings are compared" in line for line in said) == 1
            if case.startswith("cheap"):
                with open_memory(tmp_path / str(number)) as innocent:
                    assert len(innocent.recall("What is the code of vault 5 ?")) == 3
                    innocent.flush()
                    assert logs_in_index(innocent) == set(innocent.store.ledger.ids())
                    assert innocent.add(numbered(5)) in logs_in_index(innocent)
            program.stdin.write("go on\n")
            program.stdin.flush()
            assert program.stdout.readline() == "ended 0\n", case
        assert program.wait(60) == 0
    finally:
        limit.cancel()
        program.kill()
        program.wait()
