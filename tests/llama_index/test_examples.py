"""The tutorials run, and show what they say."""

from __future__ import annotations

import re

import pytest

from tests.tutorials import sections_of


@pytest.fixture
def lines(request, capsys, engine):
    """What a tutorial prints, section by section."""
    return sections_of(f"llama_index/{request.param}", capsys, engine)


@pytest.mark.parametrize("lines", ["query_engine"], indirect=True)
def test_query_engine(lines):
    first, _, again, streamed = lines
    assert "Quill" not in first
    assert "Logged with 2 sources" in first
    without, recalled = again.split("with memory:")
    assert "Quill" not in without
    assert "Quill" in recalled
    assert re.search(r"[1-9]\d* tokens of 1 log not read", recalled)
    assert "Quill" in streamed
    assert "logs used: 1" in streamed


@pytest.mark.parametrize("lines", ["react_agent"], indirect=True)
def test_react_agent(lines):
    captured, local = lines
    assert captured.count("calls find_price") == 2
    assert captured.count("success, 5 messages") == 2
    assert "failure, 3 messages: How much does a oak table cost?" in captured
    assert "The guess is not recalled: True" in captured
    without, recalled = local.split("with memory:")
    assert "58" not in without
    assert "58" in recalled
    assert re.search(r"[1-9]\d* tokens of 1 log not read", recalled)


@pytest.mark.parametrize("lines", ["workflow"], indirect=True)
def test_workflow(lines):
    both, alone, later = lines
    assert "writer:" in both
    assert "One log of AgentWorkflow.run" in both
    assert both.count("'tool'") == 2
    assert "12" in alone
    assert re.search(r"[1-9]\d* tokens of 1 log not read", alone)
    assert "4 messages" in later
