"""Every benchmark is a command, and what names one names it right."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in (ROOT / "benchmarks").rglob("*.py")
    if 'if __name__ == "__main__"' in path.read_text("utf-8")
)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("name", COMMANDS)
def test_every_benchmark_has_help(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    assert end.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith(f"usage: python -m {name} ")
    assert "--help" in told


def test_makefile_and_docs_name_the_benchmarks_that_there_are():
    named = {
        name
        for path in (ROOT / "Makefile", *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
        for name in re.findall(r"python -m ([a-z_.]+)", path.read_text("utf-8"))
        if "benchmarks" in name or "evaluation" in name
    }
    assert named - {"benchmarks."} == set(COMMANDS), "each has a line in the Makefile"
