"""What callers wait for, measured for a moment."""

from __future__ import annotations

import re

from benchmarks.latency import main


def test_calls_are_timed_and_nothing_goes_wrong(capsys):
    main(["--threads", "4", "--seconds", "3", "--logs", "40"])
    said = capsys.readouterr().out
    rows = re.findall(r"(add|recall|delete) +│ +(\d[\d,]*)((?: +│ +[\d,.]+){4})", said)
    assert [name for name, _, _ in rows] == ["add", "recall", "delete"]
    for _, calls, figures in rows:
        p50, p95, p99, most = (float(one.replace(",", "")) for one in figures.split("│")[1:])
        assert int(calls.replace(",", "")) > 0
        assert 0 < p50 <= p95 <= p99 <= most
    assert "0 errors, 0 problems" in said
