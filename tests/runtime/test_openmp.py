"""No thread keeps a team for computing that it does not use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys, threading, tempfile
import torch
from lag_integrations import Engine, KVLogMemory, packaged
from lag_integrations.runtime.openmp import let_go
from lag_integrations.traces.trace import Message
from tests.conftest import qa

torch.set_num_threads(3)
engine = Engine.load(packaged.chat_model())
chat = [Message(role="user", content="Where is the key?")]
log = qa("Where is the key of the vault?", "Under the third stone.")

def threads():
    return len(os.listdir("/proc/self/task"))

def left():
    before = threads()
    let_go()
    return before - threads()

def streamed():
    stream = engine.stream(chat, max_new_tokens=20)
    next(stream)
    return stream  # more is to come

def operation():
    torch.ones(10**6).add_(1)

with tempfile.TemporaryDirectory() as folder, KVLogMemory(folder, codec="int8") as memory:
    memory.attach(engine)
    def remembered():
        memory.add(log)
        memory.flush()
        memory.store.segment_cache.clear()
        memory.segments(memory.recall("Where is the key?", min_score=-1))
    ways = {
        "operation": operation,
        "generate": lambda: engine.generate(chat, max_new_tokens=3),
        "stream": streamed,
        "batch": lambda: engine.generate_batch([engine.request(chat, max_new_tokens=3)] * 2),
        "encode": lambda: engine.encode(log),
        "memory": remembered,
        "embed": lambda: memory.recall("What is under the third stone?", min_score=-1),
        "load": lambda: Engine(engine.model, engine.tokenizer),
    }
    def all_of_them():
        for name, way in ways.items():
            held = way()
            print(name, left())
    thread = threading.Thread(target=all_of_them)
    thread.start()
    thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="teams stay where OpenMP is another")
def test_teams_are_let_go():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "3"},
        timeout=300,
    )
    found = dict(line.split() for line in done.stdout.splitlines())
    assert found.pop("operation") == "2", done.stderr  # what torch alone leaves
    assert found == dict.fromkeys(
        ("generate", "stream", "batch", "encode", "memory", "embed", "load"), "0"
    )


FORKED = """
import os
import torch
from lag_integrations.runtime.openmp import let_go

torch.set_num_threads(3)
torch.ones(10**6).add_(1)
child = os.fork()
if not child:
    let_go()
    torch.ones(10**6).add_(1)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(sys.platform != "linux", reason="teams stay where OpenMP is another")
def test_a_fork_does_not_wait_for_its_parents_team():
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    subprocess.run([sys.executable, "-c", FORKED], env=environment, timeout=60, check=True)
