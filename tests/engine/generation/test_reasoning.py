"""What a model thinks is kept apart from what it says."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lag_integrations.engine.generation.reasoning import (
    ChannelReader,
    ReasoningDelta,
    ReasoningReader,
    TextDelta,
)


def read(pieces, opened=False, channels=False):
    reader = ChannelReader() if channels else ReasoningReader(opened)
    parts = [part for piece in pieces for part in reader.feed(piece)] + reader.finish()
    return tuple(
        "".join(part.text for part in parts if isinstance(part, kind))
        for kind in (ReasoningDelta, TextDelta)
    )


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", False, ("Hm.", "Yes.")),
        ("Hm.\n</think>\n\nYes.", True, ("Hm.", "Yes.")),
        ("Yes.", False, ("", "Yes.")),
        ("  Yes <think> no", False, ("", "  Yes <think> no")),
        ("<think>cut off", False, ("cut off", "")),
        ("<think></think>Yes", False, ("", "Yes")),
        ("<thin", False, ("", "<thin")),
        ("<think>a < b </thi", False, ("a < b </thi", "")),
        ("", False, ("", "")),
    ],
)
def test_the_split(text, opened, expected):
    assert read([text], opened) == expected
    assert read(list(text), opened) == expected


@given(
    st.text(alphabet="<think>/ \na", max_size=40),
    st.lists(st.integers(0, 40), max_size=4),
    st.booleans(),
)
def test_pieces_of_any_size_give_the_same(text, cuts, opened):
    places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = [text[a:b] for a, b in pairwise(places)]
    assert read(pieces, opened) == read([text], opened)


def test_what_is_certain_is_given_at_once():
    reader = ReasoningReader(opened=False)
    assert reader.feed("<think>I wonder") == [ReasoningDelta("I wonder")]
    assert reader.feed("</think>") == []
    assert reader.feed("So") == [TextDelta("So")]


ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
NEXT = "<|end|><|start|>assistant"
CALL = '<|channel|>commentary to=functions.look <|constrain|>json<|message|>{"a": 1}<|call|>'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{ANALYSIS}Hm.{NEXT}{FINAL}Yes.<|return|>", ("Hm.", "Yes.")),
        (f"{ANALYSIS}Hm.{NEXT}{FINAL}Yes, a < b", ("Hm.", "Yes, a < b")),
        (f"{FINAL}Yes.", ("", "Yes.")),
        # Without the marks that a tokenizer hides.
        (f"{ANALYSIS}Hm.<|start|>assistant{FINAL}Yes.", ("Hm.", "Yes.")),
        (f"{ANALYSIS}Hm.{NEXT}{ANALYSIS}Ah.{NEXT}{FINAL}Yes.", ("Hm.\nAh.", "Yes.")),
        (f"{ANALYSIS}Hm.{NEXT}{CALL}", ("Hm.", CALL)),
        (
            f"{ANALYSIS}Hm.{NEXT}<|channel|>commentary<|message|>I look.{NEXT}{CALL}",
            ("Hm.", f"I look.{CALL}"),
        ),
        (
            "<|start|>assistant to=functions.look<|channel|>commentary json<|message|>{}<|call|>",
            ("", " to=functions.look<|channel|>commentary json<|message|>{}<|call|>"),
        ),
        (f"{ANALYSIS}cut o", ("cut o", "")),
        (f"{ANALYSIS}cut off<|en", ("cut off<|en", "")),
        ("<|channel|>fin", ("", "")),
        ("<|channel|>commentary to=functions.lo", ("", "<|channel|>commentary to=functions.lo")),
        ("Without channels, < all is said.", ("", "Without channels, < all is said.")),
        (" told", ("", " told")),
        ("", ("", "")),
    ],
)
def test_channels(text, expected):
    assert read([text], channels=True) == expected
    assert read(list(text), channels=True) == expected


@given(
    st.lists(
        st.sampled_from(
            [ANALYSIS, FINAL, NEXT, CALL, "<|end|>", "<|start|>", "<", "a", " to=", "<|channel|>"]
        ),
        max_size=8,
    ),
    st.lists(st.integers(0, 200), max_size=5),
)
def test_channels_in_pieces_of_any_size_give_the_same(texts, cuts):
    text = "".join(texts)
    places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = [text[a:b] for a, b in pairwise(places)]
    assert read(pieces, channels=True) == read([text], channels=True)


def test_what_is_certain_of_a_channel_is_given_at_once():
    reader = ChannelReader()
    assert reader.feed(f"{ANALYSIS}I wonder") == [ReasoningDelta("I wonder")]
    assert reader.feed("<|e") == []
    assert reader.feed(f"nd|><|start|>assistant{FINAL}So") == [TextDelta("So")]
