"""Looking for what was deleted."""

from __future__ import annotations

import ctypes
import os

from benchmarks.forensics import _copies, _files_with


def test_a_secret_is_found_where_it_is(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(b"\x00 qqqq-secret \xff")
    (tmp_path / "d").write_text("nothing")
    secret = "".join(("qqqq-", "secret"))
    assert _files_with(tmp_path, secret) == [tmp_path / "a" / "b" / "c"]
    held = ctypes.create_string_buffer(secret.encode())
    before = _copies(os.getpid(), secret)
    assert before > 0
    more = [ctypes.create_string_buffer(secret.encode()) for _ in range(5)]
    assert _copies(os.getpid(), secret) >= before + len(more) - 1
    del held
