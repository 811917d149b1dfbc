"""`kvlog serve`, as a process."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import httpx

from lag_integrations import KVLogMemory
from tests.serving.conftest import ask

PROGRAM = "from lag_integrations.cli import app; app()"


def test_it_serves_until_it_is_told_to_end(small, tmp_path, embedder):
    folder, store = tmp_path / "small", tmp_path / "memory"
    small.model.save_pretrained(folder)
    small.tokenizer.save_pretrained(folder)
    command = [sys.executable, "-c", PROGRAM, "serve", store, "--model", folder, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.match(r"Serving small at (\S+)/v1", line)
        assert found, line
        with httpx.Client(base_url=found[1], timeout=60) as client:
            assert client.get("/health").json() == {"status": "ok"}
            log_id = ask(client, max_tokens=4).raise_for_status().json()["lag"]["log_id"]
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=60) == 0
    with KVLogMemory(store, embedder=embedder) as memory:
        assert list(memory.store.ledger.ids()) == [log_id]
