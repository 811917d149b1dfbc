"""The tutorials run, and show what they say."""

from __future__ import annotations

import re

import pytest

from tests.tutorials import sections_of


@pytest.fixture
def told(request, capsys, engine):
    """What a tutorial prints, section by section."""
    return sections_of(f"langchain/{request.param}", capsys, engine)


@pytest.mark.parametrize("told", ["chain"], indirect=True)
def test_chain(told):
    captured, asked, used, streamed, feedback = told
    assert "1874" in captured
    without, recalled = asked.split("with memory:")
    assert "1874" not in without
    assert "1874" in recalled
    assert re.search(r"'injected_tokens': [1-9]", used)
    assert re.search(r"'cache_read': [1-9]", used)
    assert "marmalade" in streamed
    assert re.fullmatch(r"Recalled before: \['\w+'\] Recalled now: \[\]", feedback)


@pytest.mark.parametrize("told", ["agent"], indirect=True)
def test_agent(told):
    first, again, structured = told
    assert "calls find_stock" in first
    assert "model calls: 2" in first
    assert "logged as a success" in first
    assert "calls" not in again.replace("model calls", "")
    assert "12" in again
    assert "model calls: 1" in again
    assert re.fullmatch(r"Stock\(item='.*', pieces=12\)", structured)


@pytest.mark.parametrize("told", ["graph"], indirect=True)
def test_graph(told):
    _, waiting, thread, store = told
    assert "Waiting: May this answer go out?" in waiting
    assert "Logs so far: 1 Logs after it was resumed: 2" in waiting
    assert waiting.count("['system', 'user', 'assistant']") == 2  # a turn each, not the thread
    assert "1874" in thread
    assert "Ada drinks her tea with lemon." in store


@pytest.mark.parametrize("told", ["replay"], indirect=True)
def test_replay(told):
    captured, local = told
    assert "Logs: 3" in captured
    for fact in ("1874", "bees", "23"):
        assert re.search(rf"with memory: [^?]*{fact}", local)
        assert not re.search(rf"without memory: [^:]*{fact}[^:]*with memory", local)
