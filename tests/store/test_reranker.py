"""The optional reranker: the order it makes, and that a broken one loses no answer."""

from __future__ import annotations

import logging

import pytest
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from lag_integrations import KVLogMemory
from lag_integrations.errors import StoreError
from lag_integrations.store.reranker import Reranker
from tests.conftest import qa
from tests.store.model import hash_embedder

TASKS = ("the red door code", "the blue door code", "the green door code")


@pytest.fixture
def open_memory(tmp_path):
    opened = []

    def open_(reranker):
        memory = KVLogMemory(
            tmp_path / "m", embedder=hash_embedder, min_score=-1.0, reranker=reranker
        )
        opened.append(memory)
        return memory

    yield open_
    for memory in opened:
        memory.close()


@pytest.fixture
def fill(open_memory):
    with open_memory(None) as memory:
        memory.add_many(qa(task, f"It is {number}.") for number, task in enumerate(TASKS))
        memory.flush()


def blue_first(pairs):
    return [float("blue" in text) for _, text in pairs]


@pytest.mark.usefixtures("fill")
def test_a_reranker_orders_what_is_recalled(open_memory):
    memory = open_memory(blue_first)
    assert memory.recall(TASKS[0], k=1)[0].trace.task == TASKS[1]
    assert [log.trace.task for log in memory.recall(TASKS[0])][:1] == [TASKS[1]]
    (first, *others) = [one for one in memory.explain(TASKS[0], k=1) if not one.missed]
    assert first.log.trace.task == TASKS[1]
    assert others == []


def test_it_reads_what_was_asked_and_the_log(open_memory, fill):
    seen = []
    memory = open_memory(lambda pairs: seen.extend(pairs) or [0.0] * len(pairs))
    memory.recall(TASKS[0])
    assert {query for query, _ in seen} == {TASKS[0]}
    assert {text for _, text in seen} == {f"{t}\nIt is {n}." for n, t in enumerate(TASKS)}


@pytest.mark.parametrize(
    "broken",
    [
        lambda pairs: 1 / 0,
        lambda pairs: [1.0],
        lambda pairs: [float("nan")] * len(pairs),
        "no/such-cross-encoder",
    ],
)
def test_one_that_does_not_work_is_a_warning(open_memory, fill, broken, caplog):
    expected = [log.id for log in open_memory(None).recall(TASKS[0])]
    memory = open_memory(broken)
    with caplog.at_level(logging.WARNING):
        assert [log.id for log in memory.recall(TASKS[0])] == expected
        assert [log.id for log in memory.recall(TASKS[0])] == expected
    told = [record for record in caplog.records if "reranker" in record.getMessage()]
    assert told
    assert "red door" not in "".join(record.getMessage() for record in told)


def test_a_missing_one_is_tried_once(open_memory, fill, caplog):
    memory = open_memory("no/such-cross-encoder")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert len(memory.recall(TASKS[0])) == 3
    assert len([1 for record in caplog.records if "reranker" in record.getMessage()]) == 1


def test_what_is_no_reranker_is_refused(tmp_path):
    with pytest.raises(StoreError, match="cannot be used as a reranker"):
        KVLogMemory(tmp_path / "m", reranker=7)


def test_a_cross_encoder_in_a_folder(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "door"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "ce")
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(words), intermediate_size=8, num_labels=1, **size)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "ce")
    from sentence_transformers import CrossEncoder

    texts = ["red door", "blue door", "door door"]
    scores = CrossEncoder(str(tmp_path / "ce")).predict([("red", text) for text in texts])
    best_first = sorted(range(3), key=lambda place: -scores[place])
    for source in (str(tmp_path / "ce"), tmp_path / "ce", CrossEncoder(str(tmp_path / "ce"))):
        assert Reranker(source).order("red", texts) == best_first
