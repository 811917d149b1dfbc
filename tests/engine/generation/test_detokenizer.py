"""Tokens to text, as they come."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from lag_integrations.engine.generation.detokenizer import AnswerText

WORDS = ["\u2581a", "\u2581b", "\u2581c"]
BYTES = {f"<0x{number:02X}>": number for number in range(256)}


@pytest.fixture(scope="module")
def tokenizer():
    """As Llama 2 and Mistral have it: a byte is a token where no other fits."""
    vocabulary = {**BYTES, **{word: 256 + place for place, word in enumerate(WORDS)}}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["\u2581a", "\u2581b", "\u2581c"], "a b c"),
        (["\u2581a", 0xF0, 0x9F, 0x98, 0x80, "\u2581b"], "a\U0001f600 b"),
        (["\u2581a", 0x0A, 0xF0, 0x9F, "\u2581b", "\u2581c"], None),  # an emoji that was cut
        ([0x0A, 0xF0, 0x9F, 0x0A, "\u2581b", "\u2581c"], None),
    ],
)
def test_broken_characters_end_no_answer(tokenizer, tokens, text):
    vocabulary = tokenizer.get_vocab()
    ids = [token if isinstance(token, int) else vocabulary[token] for token in tokens]
    answer = AnswerText(tokenizer, (), frozenset())
    said = "".join(map(answer.add, ids)) + answer.finish()
    if text is not None:
        assert said == text
    else:
        assert said.startswith("a\n" if tokens[0] != 0x0A else "\n")
        assert said.endswith(" b c")
        assert "\ufffd" in said
