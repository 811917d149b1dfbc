"""Models tell their progress in our one bar, or not at all: a real, tiny model from a folder."""

from __future__ import annotations

import io
import sys
import threading
from pathlib import Path

import pytest
from huggingface_hub.utils import are_progress_bars_disabled
from transformers import AutoModelForCausalLM
from transformers.utils.logging import set_tqdm_hook

from lag_integrations import Engine
from lag_integrations.runtime.loading_lock import LOADING, loading
from tests.store.model import tiny_engine


class Stderr(io.StringIO):
    """Where bars go; maybe a terminal."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_engine().model.save_pretrained(folder)
    return folder


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> Stderr:
    stderr = Stderr(terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    return stderr


def test_a_terminal_shows_our_bar_and_not_transformers(folder, monkeypatch):
    stderr = shown(monkeypatch, terminal=True)
    with loading(folder):
        AutoModelForCausalLM.from_pretrained(folder)
    assert "Loading tiny" in stderr.getvalue()
    assert "Loading weights" not in stderr.getvalue()
    assert "\n" not in stderr.getvalue(), "it is gone when it is full"


@pytest.mark.parametrize("quiet", [False, True])
def test_an_engine_shows_one_bar_or_nothing(small, tmp_path, monkeypatch, quiet):
    small.model.save_pretrained(tmp_path)
    small.tokenizer.save_pretrained(tmp_path)
    stderr = shown(monkeypatch, terminal=True)
    Engine.load(tmp_path, quiet=quiet)
    assert ("Loading " in stderr.getvalue()) == (not quiet)
    assert "Loading weights" not in stderr.getvalue()


@pytest.mark.parametrize(("terminal", "quiet"), [(False, False), (True, True)])
def test_else_nothing_is_shown(folder, monkeypatch, terminal, quiet):
    stderr = shown(monkeypatch, terminal=terminal)
    with loading(folder, quiet=quiet):
        assert are_progress_bars_disabled() == quiet
        AutoModelForCausalLM.from_pretrained(folder)
    assert stderr.getvalue() == ""
    assert not are_progress_bars_disabled()


def test_others_keep_their_bars(folder, monkeypatch):
    seen = []

    def mine(make, args, kwargs):
        seen.append((kwargs["desc"], threading.current_thread().name))
        return make(*args, **kwargs)

    previous = set_tqdm_hook(mine)
    try:
        shown(monkeypatch, terminal=False)
        load = threading.Thread(
            target=AutoModelForCausalLM.from_pretrained, args=(folder,), name="other"
        )
        with loading(folder, quiet=True):
            load.start()
            load.join()
        assert seen == [("Loading weights", "other")]
        assert not LOADING.locked()
        AutoModelForCausalLM.from_pretrained(folder)
        assert len(seen) == 2, "what there was is there again"
    finally:
        assert set_tqdm_hook(previous) is mine
