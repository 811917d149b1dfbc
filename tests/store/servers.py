"""Real servers on loopback, for the time of a test run."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psycopg
import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def postgres_programs() -> Path | None:
    """Where Debian, or anyone, has put initdb and postgres."""
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if found := shutil.which("initdb"):
        candidates.insert(0, Path(found).resolve().parent)
    return next((path for path in candidates if (path / "initdb").exists()), None)


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL server; gives the URL of its databases, without a name."""
    # No folder of pytest's: each new session takes from others the right to enter these, and a
    # server that cannot reach its files ends.
    with tempfile.TemporaryDirectory(prefix="lag-postgres-") as folder, _postgres(folder) as url:
        yield url


@contextmanager
def _postgres(name: str) -> Iterator[str]:
    folder = Path(name)
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    as_user: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    data, port = folder / "data", free_port()
    initdb = [str(programs / "initdb"), "-D", str(data), "-U", "lag", "-A", "trust", "-N"]
    subprocess.run([*as_user, *initdb], check=True, capture_output=True)
    server = subprocess.Popen(
        [
            *(*as_user, str(programs / "postgres"), "-D", str(data), "-p", str(port)),
            *("-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"),
            # No test takes the machine's power.
            *("-c", "fsync=off", "-c", "full_page_writes=off"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(300):
            try:
                psycopg.connect(host="127.0.0.1", port=port, user="lag", dbname="postgres").close()
                break
            except psycopg.OperationalError:
                time.sleep(0.1)
        yield f"postgresql+psycopg://lag@127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


@contextmanager
def chroma(folder: Path) -> Iterator[str]:
    """A Chroma server; gives its URL."""
    port = free_port()
    program = Path(sys.executable).parent / "chroma"
    server = subprocess.Popen(
        [str(program), "run", "--path", str(folder), "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "ANONYMIZED_TELEMETRY": "False"},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urlopen(f"{url}/api/v2/heartbeat", timeout=1).close()
                break
            except (URLError, OSError):
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait()
