"""The protocol: what is stored, what is asked, and what is written down."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch

from lag_integrations.engine.log_settings import DEFAULTS
from lag_integrations.engine.log_texts import around_logs
from lag_integrations.errors import EvaluationError
from lag_integrations.evaluation.evaluation import Evaluation, Shard
from lag_integrations.evaluation.questions import Dataset, Question
from lag_integrations.evaluation.records import read
from lag_integrations.evaluation.settings import Settings, settle
from lag_integrations.traces.trace import Trace
from tests.conftest import qa


def question(key: str, text: str, answer: str, *documents: str) -> Question:
    return Question(key, text, (answer,), documents=frozenset(documents))


SEEN = (
    question("vault", "What is the code of the vault in Lima?", "7741", "lima"),
    question("ferry", "What does the Ostrava ferry carry?", "bees", "ostrava"),
    question("moon", "Who walked on the moon first?", "Armstrong"),
)
UNSEEN = (
    question("guard", "Who guards the vault in Lima?", "Rosa", "lima"),
    question("tea", "Which tea does the queen of Tonga drink?", "mint", "tonga"),
)
DATASET = Dataset("small", SEEN, UNSEEN)
_, LOGS_END = around_logs(text_before=True)


def settings(**changes):
    fields = {"rounds": 1, "documents": 0, "k": 1, "max_tokens": 20, "direct": True}
    return Settings(dataset="small", model="puppet", **{**fields, "min_score": 0.5, **changes})


@pytest.fixture
def evaluate(puppet, embedder, tmp_path):
    def run(arms, *, dataset=DATASET, shard=None, others=None, out=tmp_path, **changes):
        part = Shard(*shard) if shard else None
        evaluation = Evaluation(settings(**changes), dataset, puppet, embedder, out, part, others)
        evaluation.run(arms, lambda *_: None)
        return {
            (record.arm, record.question_id): record
            for record in read(sorted(out.glob("records-*.jsonl")))
        }

    return run


def knows(prompt: str) -> str:
    """Right about the vault and the ferry, wrong about all else."""
    last = prompt.rpartition("Question: ")[2]
    return "7741</ans>" if "code" in last else "bees</ans>" if "ferry" in last else "cheese</ans>"


def test_every_question_is_asked_with_every_arm(evaluate, puppet):
    puppet.says(knows)
    records = evaluate(["none", "kv_last"])
    assert len(records) == 10
    vault, guard, tea = (records["kv_last", key] for key in ("vault", "guard", "tea"))
    assert (vault.stratum, guard.stratum, tea.stratum) == ("seen", "overlapping", "unseen")
    assert vault.logs == ("vault",)
    assert vault.scores[0] > 0.5
    assert vault.injected_tokens > 0
    assert vault.exact_match
    assert (vault.answer, vault.answered_in, vault.rounds) == ("7741", 1, 1)
    assert not records["kv_last", "tea"].exact_match
    assert records["none", "vault"].logs == ()


def test_it_goes_on_where_it_was_killed(evaluate, puppet, tmp_path):
    def dies(prompt: str) -> str:
        if len(puppet.prompts) == 4:
            raise KeyboardInterrupt
        return knows(prompt)

    puppet.says(dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate(["none"])
    path = tmp_path / "records-1-of-1.jsonl"
    path.write_text(path.read_text() + '{"arm": "none", "ques')
    puppet.says(knows)
    assert len(evaluate(["none"])) == 5
    assert len(puppet.prompts) == 2
    puppet.says(knows)
    evaluate(["none"])
    assert puppet.prompts == []


LIMA, QUITO = (
    question(city, f"What is the code of the vault in {city}?", code)
    for city, code in (("Lima", "7741"), ("Quito", "3310"))
)


def learns(prompt: str) -> str:
    return "When: a vault. Do: 7741 in Lima." if "short lesson" in prompt else "7741</ans>"


def test_lessons_are_made_once_and_given_in_place_of_logs(evaluate, puppet):
    vaults = Dataset("vaults", (LIMA, QUITO), ())
    puppet.says(learns)
    kv = evaluate(["lessons_kv"], dataset=vaults)["lessons_kv", "Lima"]
    assert [("short lesson" in prompt) for prompt in puppet.prompts] == [True, False, False]
    assert puppet.injected == [0, 1, 1]
    assert kv.logs[0] not in ("Lima", "Quito")
    puppet.says(learns)
    text = evaluate(["lessons_text", "kv"], dataset=vaults)
    assert text["lessons_text", "Lima"].logs == kv.logs
    assert "7741 in Lima." in puppet.prompts[0]
    assert len(puppet.prompts) == 4  # nothing is distilled again
    assert text["kv", "Lima"].logs == ("Lima",)


def test_lessons_grow_with_the_questions(evaluate, puppet):
    third = question("third", "What is the code of the vault in Bogota?", "7741")
    puppet.says(learns)
    records = evaluate(["lessons_text"], dataset=Dataset("v", (LIMA, QUITO), (third,)), online=True)
    assert [len(records["lessons_text", key].logs) for key in ("Lima", "Quito", "third")] == [
        0,
        0,
        1,
    ]


def test_shards_do_it_all_and_nothing_twice(evaluate, puppet):
    puppet.says(knows)
    evaluate(["kv_last"], shard=(1, 2))
    assert len(puppet.prompts) == 3
    records = evaluate(["kv_last"], shard=(2, 2))
    assert len(puppet.prompts) == 5
    assert len(records) == 5
    assert records["kv_last", "ferry"].logs == ("ferry",)


def test_own_logs_are_what_the_standard_agent_did(evaluate, puppet):
    puppet.says(knows)
    with pytest.raises(EvaluationError, match="3 of 3 seen questions have no log yet"):
        evaluate(["text_last"], logs="self")
    evaluate(["none"], logs="self", shard=(1, 2))
    with pytest.raises(EvaluationError, match="1 of 3"):
        evaluate(["text_last"], logs="self")
    evaluate(["none"], logs="self", shard=(2, 2))
    records = evaluate(["text_last"], logs="self")
    assert records["text_last", "vault"].logs == ("vault",)
    assert f"<ans>7741</ans>{LOGS_END}Question: What is the code" in "".join(puppet.prompts)


@pytest.mark.parametrize("only_correct", [True, False])
def test_wrong_logs_are_recalled_only_if_they_may_be(evaluate, puppet, only_correct):
    puppet.says(knows)
    records = evaluate(["none", "text_last"], logs="self", only_correct=only_correct)
    assert records["text_last", "moon"].logs == (() if only_correct else ("moon",))


def test_an_online_store_grows_as_it_runs(evaluate, puppet):
    again = question("again", "Tell me the code of the vault in Lima, please.", "7741", "lima")
    dataset = Dataset("small", SEEN[:2], (again,))
    puppet.says(knows)
    records = evaluate(["kv_last"], dataset=dataset, online=True)
    assert records["kv_last", "vault"].logs == ()
    assert records["kv_last", "again"].logs == ("vault",)
    strata = [records["kv_last", key].stratum for key in ("vault", "ferry", "again")]
    assert strata == ["unseen", "unseen", "overlapping"]


def test_an_online_run_that_was_killed_has_its_logs(evaluate, puppet):
    again = question("again", "Tell me the code of the vault in Lima, please.", "7741")
    dataset = Dataset("small", SEEN[:2], (again,))

    def dies(prompt: str) -> str:
        if len(puppet.prompts) == 3:
            raise KeyboardInterrupt
        return knows(prompt)

    puppet.says(dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate(["kv_last"], dataset=dataset, online=True)
    puppet.says(knows)
    records = evaluate(["kv_last"], dataset=dataset, online=True)
    assert records["kv_last", "again"].logs == ("vault",)
    assert len(puppet.prompts) == 1


def test_logs_of_another_dataset_are_stored_instead(evaluate, puppet):
    others = Dataset("others", (question("tonga", "Which tea is drunk in Tonga?", "mint"),))
    puppet.says(knows)
    records = evaluate(["text_last"], others=others, logs="other", min_score=-1.0)
    assert {record.logs for record in records.values()} == {("tonga",)}
    assert {record.stratum for record in records.values()} == {"unseen"}


def test_logs_that_a_dataset_brings_are_stored_as_they_are(evaluate, puppet):
    log = qa("What is the code of the vault in Lima?", "The code is 7741.")
    puppet.says(knows)
    own = Dataset("small", SEEN, logs=(log,))
    records = evaluate(["text_last"], dataset=own, logs="dataset")
    assert f"The code is 7741.{LOGS_END}Question: What is the code" in "".join(puppet.prompts)
    assert len(records["text_last", "vault"].logs) == 1


def test_a_folder_holds_one_evaluation(tmp_path):
    path = tmp_path / "run.json"
    settle(path, settings(), DATASET, "abc")
    settle(path, settings(), DATASET, "abc")
    with pytest.raises(EvaluationError, match=r"k 1 \(now 3\).*--out"):
        settle(path, settings(k=3), DATASET, "abc")
    with pytest.raises(EvaluationError, match="fingerprint"):
        settle(path, settings(), DATASET, "other")
    calibrated = DEFAULTS.model_copy(update={"temperature": 0.8})
    with pytest.raises(EvaluationError, match=r"given .*0\.9.*\(now .*0\.8"):
        settle(path, settings(), DATASET, "abc", calibrated)
    corrected = replace(SEEN[0], answers=("7742",))
    with pytest.raises(EvaluationError, match="data"):
        settle(path, settings(), Dataset("small", (corrected, *SEEN[1:]), UNSEEN), "abc")
    assert list(tmp_path.iterdir()) == [path]


def test_a_record_that_is_none_is_refused(tmp_path):
    path = tmp_path / "records-1-of-1.jsonl"
    path.write_text('{"arm": "none"}\n')
    with pytest.raises(EvaluationError, match=r"Line 1 of records-1-of-1\.jsonl"):
        list(read([path]))


def test_traces_of_runs_are_whole(evaluate, puppet, tmp_path):
    puppet.says(knows)
    evaluate(["none"], logs="self")
    lines = (tmp_path / "traces-1-of-1.jsonl").read_text().splitlines()
    traces = [Trace.from_json(line) for line in lines]
    assert [trace.outcome for trace in traces] == ["success", "success", "failure"]
    assert [trace.metadata["question_id"] for trace in traces] == ["vault", "ferry", "moon"]


@pytest.mark.parametrize(
    ("said", "right"), [("(A)", True), ("(B)", False), ("One", True), ("", False)]
)
def test_a_letter_is_right_or_wrong(evaluate, puppet, said, right):
    choice = Question("q", "Which is it?", ("A",), options=("One", "Two"))
    puppet.says(f"{said}</ans>")
    record = evaluate(["none"], dataset=Dataset("small", (choice,)))["none", "q"]
    assert (record.exact_match, record.f1) == (right, float(right))


def test_a_run_that_said_nothing_is_no_log_and_stops_nothing(evaluate, puppet):
    dumb = {"direct": False, "logs": "self"}
    puppet.says("")
    evaluate(["none"], **dumb)
    records = evaluate(["text_last"], **dumb)
    assert len(records) == 10
    assert not any(record.logs for record in records.values())


def test_an_online_question_that_is_asked_again_has_no_log_of_its_own(evaluate, puppet, tmp_path):
    puppet.says(knows)
    dataset = Dataset("small", SEEN[:1])
    evaluate(["kv_last"], dataset=dataset, online=True)
    (tmp_path / "records-1-of-1.jsonl").unlink()  # as if killed after its log was stored
    records = evaluate(["kv_last"], dataset=dataset, online=True)
    assert records["kv_last", "vault"].logs == ()


def test_what_is_too_much_for_the_window_costs_logs_then_the_question(
    evaluate, puppet, monkeypatch, tmp_path
):
    filler = "The sea is wide. " * 60
    logs = tuple(qa(f"What is the code of the vault in Lima? {n}", filler) for n in range(3))
    asked = Dataset("small", SEEN[:1], logs=logs)
    monkeypatch.setattr(puppet.positions, "window", 700)
    puppet.says(knows)
    few = evaluate(["text_last"], dataset=asked, logs="dataset", k=3)["text_last", "vault"]
    assert len(few.logs) == 2
    assert few.exact_match
    assert few.error is None
    long = Dataset("small", (replace(SEEN[0], text=f"{filler * 3} {SEEN[0].text}"),))
    other = tmp_path / "other"
    other.mkdir()
    failed = evaluate(["none"], dataset=long, out=other)["none", "vault"]
    assert (failed.exact_match, failed.error, failed.rounds) == (False, "ContextWindowError", 0)


def test_the_standard_agent_goes_first(evaluate, puppet):
    puppet.says(knows)
    records = evaluate(["text_last", "none"], logs="self")
    assert records["text_last", "vault"].logs == ("vault",)


def test_questions_are_worked_on_at_once(evaluate, puppet, tmp_path):
    together = threading.Barrier(2, timeout=60)  # who is alone waits in vain

    def says(prompt):
        if "Tonga" not in prompt:  # the fifth has nobody to go with
            together.wait()
        return knows(prompt)

    puppet.says(says)
    records = evaluate(["none", "kv_last"], batch=2)
    other = tmp_path / "alone"
    other.mkdir()
    puppet.says(knows)
    alone = evaluate(["none", "kv_last"], out=other)
    assert alone["kv_last", "vault"].seconds > 0
    assert alone["kv_last", "vault"].time_to_first_token > 0
    untimed = {"seconds": None, "time_to_first_token": None}
    counted_alike = {"computed_tokens"}  # what was read lately is not read again
    assert {key: record.model_dump(exclude=counted_alike) for key, record in records.items()} == {
        key: record.model_copy(update=untimed).model_dump(exclude=counted_alike)
        for key, record in alone.items()
    }


def test_a_batch_that_was_killed_is_asked_again(evaluate, puppet):
    def dies(prompt: str) -> str:
        if len(puppet.prompts) == 4:
            raise KeyboardInterrupt
        return knows(prompt)

    puppet.says(dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate(["none"], batch=2)
    puppet.says(knows)
    assert len(evaluate(["none"], batch=2)) == 5
    assert len(puppet.prompts) in (2, 3)  # whichever of the two died


def test_in_a_batch_what_is_too_much_for_the_window_costs_its_own_logs(
    evaluate, puppet, monkeypatch
):
    filler = "The sea is wide. " * 60
    logs = tuple(qa(f"What is the code of the vault in Lima? {n}", filler) for n in range(3))
    long = replace(SEEN[1], text=f"{filler * 3} {SEEN[1].text}")
    asked = Dataset("small", (SEEN[0], long, SEEN[2]), logs=logs)
    monkeypatch.setattr(puppet.positions, "window", 700)
    puppet.says(knows)
    records = evaluate(["text_last"], dataset=asked, logs="dataset", k=3, batch=3)
    assert len(records["text_last", "vault"].logs) == 2
    assert records["text_last", "vault"].exact_match
    assert records["text_last", "ferry"].error == "ContextWindowError"
    assert records["text_last", "moon"].error is None


def test_a_batch_that_is_too_much_for_the_memory_goes_one_by_one(evaluate, puppet, monkeypatch):
    start = puppet.start

    def full(*arguments):
        if threading.current_thread() is not threading.main_thread():
            raise torch.OutOfMemoryError
        return start(*arguments)

    monkeypatch.setattr(puppet, "start", full)
    puppet.says(knows)
    records = evaluate(["none"], batch=2)
    assert len(records) == 5
    assert records["none", "vault"].exact_match


def test_the_very_tokens_of_the_segments_are_read_as_text(evaluate, puppet):
    puppet.says(knows)
    records = evaluate(["kv", "text_tokens"])
    kv, text = (records[name, "vault"] for name in ("kv", "text_tokens"))
    assert text.logs == kv.logs == ("vault",)
    assert text.injected_tokens == 0
    injected, read = (p for p in puppet.prompts if f"Question: {SEEN[0].text}" in p)
    kept = (
        f"<|im_start|>user\n{SEEN[0].text}<|im_end|>\n"
        "<|im_start|>assistant\nThe answer is <ans>7741</ans><|im_end|>"
    )
    assert kept not in injected
    assert kept in read
    assert read.index(kept) < read.index(f"Question: {SEEN[0].text}")


def test_a_related_question_is_given_its_log_whatever_is_recalled(evaluate, puppet, tmp_path):
    # It would recall the ferry's log, if any.
    asked = Question(
        "new", SEEN[1].text, ("cheese",), log_of="vault", old_answer="7741", kind="twin"
    )
    dataset = Dataset("small", SEEN, related=(asked,))
    puppet.says("7741</ans>")
    records = evaluate(["none", "text_last", "kv_last"], dataset=dataset, k=2)
    for arm in ("text_last", "kv_last"):
        found = records[arm, "new"]
        assert (found.stratum, found.logs, found.scores) == ("twin", ("vault",), ())
        assert found.parroted
        assert records[arm, "vault"].parroted is None
    assert records["none", "new"].logs == ()
    assert evaluate(["text_all"], dataset=dataset, k=0)["text_all", "new"].logs == ()
    foreign = Dataset("others", (question("tonga", "Which tea is drunk in Tonga?", "mint"),))
    other = tmp_path / "other"
    other.mkdir()
    given = {"logs": "other", "min_score": -1.0, "out": other}
    record = evaluate(["kv_last"], dataset=dataset, others=foreign, **given)["kv_last", "new"]
    assert (record.logs, record.stratum) == (("tonga",), "unseen")


@pytest.mark.parametrize(
    ("said", "right", "parroted"),
    [
        ("bees", False, True),
        ("cheese", True, False),
        ("old bees", True, False),
        ("tea", False, False),
        ("", False, False),
    ],
)
def test_an_old_answer_is_parroted_only_if_it_is_wrong(evaluate, puppet, said, right, parroted):
    old = "Old bees" if said == "old bees" else "Bees"
    gold = ("cheese", "old bees")
    asked = Question("new", "What?", gold, log_of="ferry", old_answer=old, kind="twin")
    puppet.says(f"{said}</ans>")
    record = evaluate(["kv_last"], dataset=Dataset("small", SEEN, related=(asked,)))
    assert record["kv_last", "new"].exact_match is right
    assert record["kv_last", "new"].parroted is parroted


def test_a_number_is_worked_out_and_right_within_a_hundredth(evaluate, puppet):
    asked = Question(
        "new", "What is 90 over 30?", ("3",), numeric=True, log_of="old", old_answer="2"
    )
    old = Question("old", "What is 8 over 4?", ("2",), numeric=True, log=qa("8 over 4?", "Two: 2"))
    old = replace(old, log=old.log.model_copy(update={"metadata": {"question_id": "old"}}))
    dataset = Dataset("small", (old,), related=(asked,))
    puppet.says("90 / 30 = 3.01", "It is <ans>2.0</ans>")
    records = evaluate(["text_last"], dataset=dataset, direct=False)
    worked, parroted = records["text_last", "old"], records["text_last", "new"]
    assert (worked.answer, worked.exact_match) == ("3.01", False)
    assert (parroted.answer, parroted.exact_match, parroted.parroted) == ("2.0", False, True)
    assert all("Answer the question with a number" in prompt for prompt in puppet.prompts)
    assert f"Two: 2{LOGS_END}Question: What is 90" in puppet.prompts[1]


def test_only_some_strata_are_asked(puppet, embedder, tmp_path):
    puppet.says(knows)
    one = Evaluation(
        settings(), DATASET, puppet, embedder, tmp_path, strata=("overlapping", "unseen")
    )
    one.run(["none"], lambda *_: None)
    found = read([tmp_path / "records-1-of-1.jsonl"])
    assert {record.question_id for record in found} == {"guard", "tea"}


@pytest.mark.parametrize("batch", [1, 2])
def test_answers_are_rated_as_if_the_logs_were_text(evaluate, puppet, monkeypatch, batch):
    puppet.says(knows)
    rated = []

    def likelihoods(requests, answers):
        (request,), (answer,) = requests, answers
        assert not request.segments
        rated.append(puppet.tokenizer.decode(request.prompt_ids))
        return [torch.tensor([[-0.5] * len(answer), [1.0] * len(answer)])]

    monkeypatch.setattr(puppet, "log_likelihoods", likelihoods)
    records = evaluate(["none", "kv_last"], likelihood=True, batch=batch)
    assert records["none", "vault"].log_likelihood is None
    assert records["kv_last", "tea"].log_likelihood is None  # no log was near enough
    assert records["kv_last", "vault"].log_likelihood == -0.5
    log = f"The answer is <ans>7741</ans>{LOGS_END}Question: What is the code of the vault in Lima?"
    (vault,) = (prompt for prompt in rated if log in prompt)
    assert vault.endswith("<ans>")
    assert len(rated) == sum(bool(record.logs) for record in records.values())


def test_what_was_written_is_there_with_its_repetition(evaluate, puppet):
    puppet.says("the past the past the past</ans>")
    record = evaluate(["none"])["none", "vault"]
    assert record.response == "<ans>the past the past the past</ans>"
    assert record.repetition == 0.5
    assert record.log_likelihood is None
