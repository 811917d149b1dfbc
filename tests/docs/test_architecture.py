"""What docs/architecture.md names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text("utf-8")
FILES = sorted(set(re.findall(r"`([\w/*]+\.py)`", TEXT)))
STOPS = re.findall(r"^\d+\. `(\w+)(?:\.(\w+))?`[^\n]*?\(`([\w/*]+\.py)`\)", TEXT, re.MULTILINE)


@pytest.mark.parametrize("name", FILES)
def test_files_are_there(name: str) -> None:
    assert list((ROOT / "lag_integrations").glob(f"**/{name}"))


@pytest.mark.parametrize(("name", "method", "file"), STOPS)
def test_stops_are_there(name: str, method: str, file: str) -> None:
    texts = [path.read_text("utf-8") for path in (ROOT / "lag_integrations").glob(f"**/{file}")]
    assert any(re.search(rf"(?:class|def) {name}\b", text) for text in texts)
    if method:
        assert any(f"def {method}(" in text for text in texts)


def test_ways_are_short() -> None:
    """At most ten stops each, none visited twice."""
    for title in ("The way of one call", "The way of one trace"):
        way = TEXT.split(f"## {title}\n")[1].split("\n## ")[0]
        stops = re.findall(r"^(\d+)\. `([\w.]+)`", way, re.MULTILINE)
        assert [int(number) for number, _ in stops] == list(range(1, len(stops) + 1))
        assert len(stops) <= 10
        assert len({name for _, name in stops}) == len(stops)


def test_every_module_is_named() -> None:
    package = ROOT / "lag_integrations"
    modules = [path for path in package.rglob("*.py") if not path.name.startswith("__")]
    skipped = (  # named as folders
        *("store/migrations/", "store/chroma/", "store/relevance/"),
        *("evaluation/datasets/", "evaluation/recall/"),
        *("engine/quantization/", "engine/tools/", "kv/codecs/"),
    )
    for path in modules:
        name = path.relative_to(package).as_posix()
        if not name.startswith(skipped):
            assert f"{path.name}`" in TEXT or f"`{path.stem}`" in TEXT, name


def test_no_module_has_more_than_400_lines() -> None:
    lengths = {
        path.name: len(path.read_text("utf-8").splitlines())
        for path in (ROOT / "lag_integrations").glob("**/*.py")
    }
    assert {name: length for name, length in lengths.items() if length > 400} == {}
