"""The loaders of datasets, on small files of the published layouts."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lag_integrations.errors import EvaluationError
from lag_integrations.evaluation.datasets import NAMES, load
from lag_integrations.evaluation.questions import Document, Question


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in value), "utf-8")
    else:
        path.write_text(json.dumps(value), "utf-8")


def musique(id: str, *documents: str, **fields: Any) -> dict[str, Any]:
    steps = [
        {"question": "Blue Door >> cast member", "answer": "Ann Lee"},
        {"question": "where was #1 born", "answer": "Oslo"},
        {"question": "Who is the mayor of #2 , #1 's home, a #9 or #0 hit ?", "answer": "Bo Ek"},
    ]
    for step, document in zip(steps, documents, strict=False):
        step["document_id"] = document
    row = {
        "id": id,
        "question": f"Question {id}?",
        "question_decomposition": steps[: len(documents) or 3],
        "answer": "Bo Ek",
        "answer_aliases": ["B. Ek"],
    }
    return row | fields


def wiki(id: str, titles: list[str], **fields: Any) -> dict[str, Any]:
    row = {
        "_id": id,
        "question": f"Question {id}?",
        "supporting_facts": [[title, 0] for title in titles],
        "evidences": [["Lux", "founded by", "Ada"], ["Ada", "place of birth", "Oslo"]],
        "answer": "Oslo",
    }
    return row | fields


def mmlu(id: int, **fields: Any) -> dict[str, Any]:
    row = {
        "question_id": id,
        "question": f"Question {id}?",
        "options": [" one", "two", "three"],
        "answer": "B",
        "answer_index": 1,
        "cot_content": "",
        "category": "math",
    }
    return row | fields


def test_musique_has_the_published_split_and_facts_that_can_be_read(tmp_path):
    write(tmp_path / "musique/train.json", [musique("a", "Blue Door_0", "Ann_3", "Oslo_1")])
    write(tmp_path / "musique/test.json", [musique("b", "Blue Door_0"), musique("c", "Rome_0")])
    dataset = load("musique", tmp_path)
    assert dataset.seen == (
        Question(
            id="a",
            text="Question a?",
            answers=("Bo Ek", "B. Ek"),
            documents=frozenset({"Blue Door_0", "Ann_3", "Oslo_1"}),
            facts=(
                ("Blue Door, cast member", "Ann Lee"),
                ("where was Ann Lee born", "Oslo"),
                ("Who is the mayor of Oslo, Ann Lee's home, a #9 or #0 hit?", "Bo Ek"),
            ),
        ),
    )
    assert [dataset.stratum(question) for question in dataset.unseen] == ["overlapping", "unseen"]
    assert dataset.documents == ()


def test_musique_in_the_layout_of_the_paper_with_documents(tmp_path):
    write(tmp_path / "musique/dev_train.json", [musique("a", "Blue Door_0")])
    write(tmp_path / "musique/dev_test.json", [musique("b", "Oslo_1")])
    documents = {
        "Blue Door_0": {"title": "Blue Door", "content": "A film."},
        "Oslo_1": {"title": "Oslo", "text": "A city. "},
        "Rome": "A town.",
        "Bergen": ["A port. ", "It rains."],
    }
    write(tmp_path / "musique/dev_docs.json", documents)
    dataset = load("musique", tmp_path)
    assert [question.id for question in (*dataset.seen, *dataset.unseen)] == ["a", "b"]
    assert dataset.documents == (
        Document("Blue Door_0", "Blue Door", "A film."),
        Document("Oslo_1", "Oslo", "A city."),
        Document("Rome", "Rome", "A town."),
        Document("Bergen", "Bergen", "A port. It rains."),
    )


def paragraph(title: str, text: str, gold: bool) -> dict[str, Any]:
    return {"title": title, "paragraph_text": text, "is_supporting": gold}


def test_musique_closed_finds_gold_documents_by_title_and_text(tmp_path):
    corpus = [{"title": "Oslo", "text": text} for text in ("A city.", "A port.")]
    paragraphs = [paragraph("Oslo", "A port.", True), paragraph("Oslo", "A city.", False)]
    write(tmp_path / "musique/closed_corpus.json", corpus)
    write(tmp_path / "musique/closed_questions.json", [musique("a", paragraphs=paragraphs)])
    dataset = load("musique_closed", tmp_path)
    (question,) = dataset.seen
    assert [d.text for d in dataset.documents if d.id in question.documents] == ["A port."]
    assert question.facts[0] == ("Blue Door, cast member", "Ann Lee")

    paragraphs[0]["paragraph_text"] = "A fjord."
    write(tmp_path / "musique/closed_questions.json", [musique("a", paragraphs=paragraphs)])
    with pytest.raises(EvaluationError, match=r"closed_questions\.json, row 0: a supporting"):
        load("musique_closed", tmp_path)


def test_2wiki_finds_gold_documents_by_title_whatever_its_case(tmp_path):
    titles = ["Lux", "Queen of Spades", "Queen of spades", "Oslo"]
    corpus = [{"title": title, "text": "…"} for title in titles]
    write(tmp_path / "2wiki/corpus.json", corpus)
    rows = [wiki("a", ["Lux", "Queen of Spades", "OSLO", "Rome"])]
    write(tmp_path / "2wiki/closed_questions.json", rows)
    (question,) = load("2wiki", tmp_path).seen
    assert question.documents == {"0", "1", "3", "Rome"}
    assert question.facts == (("Lux, founded by", "Ada"), ("place of birth of Ada", "Oslo"))
    assert question.answers == ("Oslo",)


def test_2wiki_in_the_layout_of_the_paper(tmp_path):
    write(tmp_path / "wikihop/dev_train.json", [wiki("a", ["Lux"])])
    write(tmp_path / "wikihop/dev_test.json", [wiki("b", ["Ada"])])
    write(tmp_path / "wikihop/dev_docs.json", {"Lux": ["A firm.", "It sells."], "Ada": "A woman."})
    dataset = load("2wiki", tmp_path)
    assert dataset.seen[0].documents == {"Lux"}
    assert dataset.unseen[0].documents == {"Ada"}
    assert dataset.documents == (
        Document("Lux", "Lux", "A firm. It sells."),
        Document("Ada", "Ada", "A woman."),
    )


def test_mmlupro_keeps_the_worked_solution_without_its_frame(tmp_path):
    worked = "A: Let's think step by step. One and one is two. The answer is (B)."
    write(tmp_path / "mmlupro/dev_train.json", [mmlu(1, cot_content=worked)])
    write(tmp_path / "mmlupro/dev_test.json", [mmlu(2)])
    dataset = load("mmlupro", tmp_path)
    assert dataset.seen == (
        Question(
            "1",
            "Question 1?",
            ("B",),
            options=("one", "two", "three"),
            solution="One and one is two.",
        ),
    )
    assert dataset.unseen[0].solution == ""


def test_gpqa_answers_are_letters(tmp_path):
    choices = ["one\n", "B", "three \n\n", "A"]
    rows = [
        {"question": "q?\n", "choices": choices, "answer": answer} for answer in ("three\n", "A")
    ]
    write(tmp_path / "gpqa/dev_train.json", rows)
    write(tmp_path / "gpqa/dev_test.json", [{**rows[0], "question": "another?"}])
    dataset = load("gpqa", tmp_path)
    assert [question.answers for question in dataset.seen] == [("C",), ("D",)]
    assert dataset.seen[0].text == "q?"
    assert dataset.seen[0].options == ("one", "B", "three", "A")
    assert dataset.stratum(dataset.unseen[0]) == "unseen"  # ids differ between the files


def step(kind: str, text: str) -> dict[str, Any]:
    return {"kind": kind, "n": 1, "text": text}


def test_react_stores_all_runs_and_asks_what_was_solved(tmp_path):
    steps = [
        step("thought", "I search."),
        step("action", "Search[Lux]"),
        step("observation", "Lux is a firm."),
        step("action", "Finish[firm]"),
        step("observation", "Answer is CORRECT"),
    ]
    runs = [
        {"question": f"{outcome}?", "outcome": outcome, "gold_answer": "firm", "steps": steps}
        for outcome in ("halted", "correct", "incorrect", "correct")
    ]
    write(tmp_path / "react/hotpotqa_traces.json", runs)
    dataset = load("react", tmp_path)
    assert [log.outcome for log in dataset.logs] == ["failure", "success", "failure", "success"]
    assert [(message.role, message.text) for message in dataset.logs[1].messages] == [
        ("user", "Question: correct?"),
        ("assistant", "Thought 1: I search.\nAction 1: Search[Lux]"),
        ("tool", "Observation 1: Lux is a firm."),
        ("assistant", "Action 1: Finish[firm]"),
    ]
    assert [(q.text, q.answers) for q in dataset.seen] == [("correct?", ("firm",))] * 2
    solved = [log for log in dataset.logs if log.outcome == "success"]
    assert [log.metadata["question_id"] for log in solved] == [q.id for q in dataset.seen]
    assert dataset.documents == ()
    limited = load("react", tmp_path, limit=1)
    assert (len(limited.seen), len(limited.logs)) == (1, 4)


def test_a_folder_of_ones_own(tmp_path):
    rows = [
        {"question": "Who leads Lux?", "answer": ["Ada", "A. Berg"], "documents": ["d1"]},
        {"question": "2 + 2?", "answer": "four", "options": ["two", "four "], "id": "sum"},
        {"question": "2 + 3?", "answer": "A", "options": ["five", "A"], "solution": "Count."},
        {"question": "Where?", "answer": "Oslo", "facts": [["Lux, city", "Oslo"]]},
    ]
    splits = ["seen", "unseen", "seen", "unseen"]
    rows = [row | {"split": split} for row, split in zip(rows, splits, strict=True)]
    write(tmp_path / "questions.jsonl", rows)
    write(tmp_path / "documents.jsonl", [{"id": "d1", "text": "Ada leads Lux."}])
    log = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
    write(tmp_path / "logs.jsonl", [log])
    dataset = load("jsonl", tmp_path)
    assert dataset.seen == (
        Question("1", "Who leads Lux?", ("Ada", "A. Berg"), documents=frozenset({"d1"})),
        Question("3", "2 + 3?", ("A",), options=("five", "A"), solution="Count."),
    )
    assert dataset.unseen == (
        Question("sum", "2 + 2?", ("B",), options=("two", "four")),
        Question("4", "Where?", ("Oslo",), facts=(("Lux, city", "Oslo"),)),
    )
    assert dataset.documents == (Document("d1", "", "Ada leads Lux."),)
    assert [log.last_response for log in dataset.logs] == ["ho"]
    assert dataset.name == tmp_path.name


def ask(**fields: Any) -> dict[str, Any]:
    return {"question": "Who?", "answer": "Ada", **fields}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([ask(), {"question": "Who?"}], r"line 2 .*answer: Field required"),
        ([ask(answer=[])], "line 1 .*at least 1"),
        ([ask(choices=["a", "b"])], "choices: Extra inputs"),
        ([ask(options=["Bo", "Cy"])], "line 1 .*not among the options"),
        ([ask(options=["Ada", "Cy"], answer=["A", "B"])], "has one answer"),
        ([ask(split="test")], "split: Input should be 'seen' or 'unseen'"),
        ([ask(split="seen"), ask(), ask()], "question '2' has no \"split\""),
        ([ask(id="2"), ask()], "1 questions of jsonl have the id of another, '2'"),
        ([ask(documents=["d1", "d2"])], "question '1' names the document 'd2'"),
        ([], "no questions"),
    ],
)
def test_a_folder_of_ones_own_that_is_wrong(tmp_path, rows, expected):
    write(tmp_path / "questions.jsonl", rows)
    write(tmp_path / "documents.jsonl", [{"id": "d1", "text": "…"}])
    with pytest.raises(EvaluationError, match=expected):
        load("jsonl", tmp_path)


def test_a_byte_order_mark_and_empty_lines_do_no_harm(tmp_path):
    (tmp_path / "questions.jsonl").write_text(json.dumps(ask()) + "\n\n", "utf-8-sig")
    assert load("jsonl", tmp_path).seen == (Question("1", "Who?", ("Ada",)),)


def test_documents_need_not_be_there(tmp_path):
    write(tmp_path / "questions.jsonl", [ask(documents=["d1"])])
    assert load("jsonl", tmp_path).seen[0].documents == {"d1"}


def test_a_bad_log_is_named(tmp_path):
    write(tmp_path / "questions.jsonl", [ask()])
    write(tmp_path / "logs.jsonl", [{"messages": [{"role": "user", "content": "hi"}]}])
    with pytest.raises(EvaluationError, match=r"logs\.jsonl, line 1: .*no assistant response"):
        load("jsonl", tmp_path)


def test_ids_of_documents_are_unique(tmp_path):
    write(tmp_path / "questions.jsonl", [ask()])
    write(tmp_path / "documents.jsonl", [{"id": "d", "text": "x"}, {"id": "d", "text": "y"}])
    with pytest.raises(EvaluationError, match="1 documents of jsonl"):
        load("jsonl", tmp_path)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("[{", r"train\.json: not JSON"),
        ('{"a": 1}', r"train\.json holds no list of rows"),
        ('[{"id": "a"}]', r"train\.json, row 0 .*question: Field required"),
        ("\xff", r"train\.json is not UTF-8"),
    ],
)
def test_a_malformed_file_is_named(tmp_path, value, expected):
    write(tmp_path / "musique/test.json", [musique("b", "Oslo_1")])
    (tmp_path / "musique/train.json").write_text(value, "latin-1")
    with pytest.raises(EvaluationError, match=expected):
        load("musique", tmp_path)


def test_a_malformed_row_is_named_but_not_shown(tmp_path):
    write(tmp_path / "mmlupro/train.json", [mmlu(1), mmlu(2, answer="Secret")])
    with pytest.raises(EvaluationError, match=r"row 1 .*letter of an option") as error:
        load("mmlupro", tmp_path)
    assert "Secret" not in str(error.value)


def test_a_malformed_document_is_named(tmp_path):
    write(tmp_path / "musique/train.json", [musique("a", "Oslo_1")])
    write(tmp_path / "musique/dev_docs.json", {"Lux": "A firm.", "Oslo_1": {"title": "Oslo"}})
    with pytest.raises(EvaluationError, match=r"dev_docs\.json, entry 'Oslo_1' .*Field required"):
        load("musique", tmp_path)


def test_a_choice_that_is_not_there(tmp_path):
    row = {"question": "q?", "choices": ["one", "two"], "answer": "three"}
    write(tmp_path / "gpqa/train.json", [row])
    with pytest.raises(EvaluationError, match=r"row 0 .*not among the options"):
        load("gpqa", tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(EvaluationError, match="no dataset 'squad'; there are musique, "):
        load("squad", tmp_path)
    with pytest.raises(EvaluationError, match=r"There is no folder .*nowhere"):
        load("gpqa", tmp_path / "nowhere")
    for name in set(NAMES) - {"jsonl"}:
        with pytest.raises(EvaluationError, match="has no folder"):
            load(name, tmp_path)
    with pytest.raises(EvaluationError, match=r"has no questions\.jsonl"):
        load("jsonl", tmp_path)
    write(tmp_path / "2wiki/dev_test.json", [])
    with pytest.raises(EvaluationError, match=r"has no dev_train\.json or train\.json;"):
        load("2wiki", tmp_path)


def mmlu_layout(folder: Path) -> None:
    write(folder / "mmlupro/train.json", [mmlu(n) for n in range(100)])


def jsonl_layout(folder: Path) -> None:
    write(folder / "questions.jsonl", [ask(id=str(n)) for n in range(100)])


def wiki_layout(folder: Path) -> None:
    write(folder / "2wiki/closed_questions.json", [wiki(str(n), ["Lux"]) for n in range(100)])


def closed_layout(folder: Path) -> None:
    rows = [musique(str(n), paragraphs=[]) for n in range(100)]
    write(folder / "musique/closed_questions.json", rows)
    write(folder / "musique/closed_corpus.json", [])


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("mmlupro", mmlu_layout),
        ("jsonl", jsonl_layout),
        ("2wiki", wiki_layout),
        ("musique_closed", closed_layout),
    ],
)
def test_without_a_split_the_seed_makes_one(
    tmp_path: Path, name: str, layout: Callable[[Path], None]
) -> None:
    layout(tmp_path)
    for seed in (0, 5):
        order = [str(n) for n in range(100)]
        random.Random(seed).shuffle(order)
        dataset = load(name, tmp_path, seed=seed)
        assert [question.id for question in dataset.seen] == order[:70]
        assert [question.id for question in dataset.unseen] == order[70:]


def test_a_limit_takes_a_random_sample_and_all_documents(tmp_path):
    rows = [ask(id=str(n), split="seen" if n < 70 else "unseen") for n in range(100)]
    write(tmp_path / "questions.jsonl", rows)
    write(tmp_path / "documents.jsonl", [{"id": str(n), "text": "…"} for n in range(9)])
    dataset, again, other, more = (
        load("jsonl", tmp_path, limit=limit, seed=seed)
        for limit, seed in ((10, 0), (10, 0), (10, 1), (20, 0))
    )
    assert (len(dataset.seen), len(dataset.unseen), len(dataset.documents)) == (10, 4, 9)
    assert (len(more.seen), len(more.unseen)) == (20, 9)
    assert dataset == again
    assert dataset.seen != other.seen
    assert dataset.unseen != other.unseen
    assert set(dataset.seen) < set(more.seen)  # a larger run asks the same, and more
    everything = load("jsonl", tmp_path)
    assert dataset.seen != everything.seen[:10]
    assert set(dataset.seen) < set(everything.seen)
    assert load("jsonl", tmp_path, limit=1000).unseen != ()
    with pytest.raises(EvaluationError, match="limit is 0"):
        load("jsonl", tmp_path, limit=0)


def hops(id: str, question: str, answer: str, *steps: tuple[str, str]) -> dict[str, Any]:
    decomposition = [
        {"question": asked, "answer": told, "document_id": f"{id}_{n}"}
        for n, (asked, told) in enumerate(steps)
    ]
    return musique(id, question=question, question_decomposition=decomposition, answer=answer)


def test_intermediate_answers_are_asked_for_where_the_last_response_lacks_them(tmp_path):
    rows = [
        hops(
            "a",
            "Who leads the maker of the lamp?",
            "Ada Berg of Lux",
            ("Lamp >> manufacturer", "Lux"),  # stands in the answer
            ("Lux >> located in the administrative territorial entity", "Oslo"),
            ("where does #2 lie", "Norway"),
            ("#3 >> head of state", "Ada Berg of Lux"),
        ),
        hops("b", "Who?", "Bo", ("Bo >> educated at", "Rome"), ("Who, #1 ?", "Bo")),
        hops("c", "Who?", "Bo", ("Oslo Lamp >> country", "Oslo"), ("Lux >> spouse", "Bo")),
        hops("d", "What?", "Bo", ("What?", "Bo")),
        hops("e", "What?", "Eve", ("Tea >> author", "Ann"), ("#1 >> spouse", "Eve")),
    ]
    write(tmp_path / "musique/train.json", rows)
    dataset = load("musique_dropped", tmp_path)
    assert [(one.id, one.text, one.answers) for one in dataset.related] == [
        ("a#2", "In which administrative territory is Lux?", ("Oslo",)),
        ("a#3", "Where does Oslo lie?", ("Norway",)),
        ("b#1", "What is Bo educated at?", ("Rome",)),
        ("e#1", "Who is the author of Tea?", ("Ann",)),
    ]
    assert {dataset.stratum(one) for one in dataset.related} == {"dropped"}
    logs = {one.id: one.log for one in dataset.seen}
    for one in dataset.related:
        log = logs[one.log_of]
        assert one.answers[0] in "".join(message.text for message in log.messages[:-1])
        assert one.answers[0] not in log.last_response
    few = load("musique_dropped", tmp_path, limit=2, seed=1)
    assert {one.log_of for one in few.related} <= {one.id for one in few.seen}
    assert 0 < len(few.related) < 4


def test_twins_name_another_entity_whose_answer_is_known(tmp_path):
    def birth(id: str, who: str, place: str, county: str, asked: str) -> dict[str, Any]:
        steps = ((f"{who} >> place of birth", place), ("#1 >> county", county))
        return hops(id, asked.format(who), county, *steps)

    train = [
        birth("ann", "Ann Lee", "Rome", "Lazio", "In which county was {} born?"),
        birth("bo", "Bo Ek", "Oslo", "Viken", "In which county was {} born?"),
        # The same county: nothing would be wrong.
        birth("cy", "Cy Day", "Ostia", "Lazio", "In which county was {} born?"),
        # Nobody knows where Lima's county is; and another kind of sentence.
        birth("dee", "Dee", "Rome", "Lazio", "Tell me: of whose birth is the place near here, {}"),
        # It names its entity twice.
        birth("eve", "Eve", "Turin", "Piedmont", "In which county was Eve, called {}, born?"),
        # It names a part of somebody else.
        birth("gil", "Gil", "Turin", "Piedmont", "In which county was {}da born?"),
        hops("fay", "Whose book is Blue?", "Fay", ("Blue >> author", "Fay"), ("#1 >> x", "Fay")),
    ]
    write(tmp_path / "musique/train.json", train[:2])
    write(tmp_path / "musique/test.json", train[2:])
    dataset = load("musique_twins", tmp_path)
    told = {
        one.log_of: (one.text, one.answers, one.old_answer, dataset.stratum(one))
        for one in dataset.related
    }
    assert told == {
        "ann": ("In which county was Bo Ek born?", ("Viken",), "Lazio", "twin"),
        "bo": ("In which county was Ann Lee born?", ("Lazio",), "Viken", "twin"),
        "cy": ("In which county was Bo Ek born?", ("Viken",), "Lazio", "twin"),
    }
    assert [one.id for one in dataset.seen] == ["ann", "bo", "cy"]


def formula(question: str, target: str, name: str = "Ratio") -> dict[str, str]:
    context = (
        f"Use formula {name} to answer the question. Answer with a numerical answer. Formula: "
        f"{name} = A / B, Explanation: A: Above, B: Below. Question: {question}. Answer:"
    )
    return {"context": context, "target": target}


def test_formulas_have_one_log_each_and_a_new_instance(tmp_path):
    train = [
        formula('"What is 10 over 4?"', "7.5"),  # wrong: no log is made of it
        formula("**A shop**: Put $1,000 over 500", "2.0"),
        formula('"What is 12 over 5?"', "88"),
        formula('"One of 3?"', "3", "Share"),
    ]
    val = [
        formula('"Put 50 over 25."', "2.0"),  # the old answer is right
        formula('"Put 90 over 30."', "3.0"),
        formula('"Put 9 over 2."', "4.5", "Other"),
    ]
    write(tmp_path / "formula/train.jsonl", train)
    write(tmp_path / "formula/val.jsonl", val)
    for seed in range(4):
        dataset = load("formula", tmp_path, seed=seed)
        ratio = next(one for one in dataset.seen if "500" in one.text)
        assert {one.id for one in dataset.seen} == {"train_1", "train_3"}
        (instance,) = dataset.related
        assert instance == Question(
            "val_1",
            "Put 90 over 30.",
            ("3",),
            numeric=True,
            log_of=ratio.id,
            old_answer="2",
            kind="instance",
        )
    assert [message.text for message in ratio.log.messages] == [
        "Put $1,000 over 500",
        "I will look up the formula for Ratio.",
        "Formula: Ratio = A / B. Explanation: A: Above, B: Below.",
        "Use Ratio = A / B. With the numbers of the question the answer is <ans>2</ans>",
    ]
    write(tmp_path / "formula/val.jsonl", [{"context": "Put 9 over 2.", "target": "4.5"}])
    with pytest.raises(EvaluationError, match=r"val\.jsonl, line 1"):
        load("formula", tmp_path)


def test_new_questions_on_formulas_have_logs_that_show_the_calculation(tmp_path):
    train = [
        formula('"What is 10 over 4?"', "7.5"),  # wrong
        formula('"Put $1,000, over 500."', "2.0"),
        formula('"What is 12 over 5?"', "2.4"),
        formula('"Which share is 3 of 40?"', "7.5", "Share"),
        formula('"Which share is 3 of 40?"', "7.5", "Growth"),
        formula('"What are 20 over 8?"', "2.5"),
    ]
    train[3]["context"] = train[3]["context"].replace("A / B,", "(A / B) × 100,")  # noqa: RUF001
    # What a formula with a number of its own gives is not guessed.
    train[4]["context"] = train[4]["context"].replace("A / B,", "A / (B + 1),")
    write(tmp_path / "formula/train.jsonl", train)
    write(
        tmp_path / "formula/val.jsonl",
        [formula('"Put 50 over 25."', "2.0"), formula('"Put 9 over 2."', "4.5", "Other")],
    )
    dataset = load("formula_unseen", tmp_path)
    assert dataset.digest == load("formula_unseen", tmp_path).digest
    told = {one.id: one.log.last_response for one in dataset.seen}
    numbers, percent = "With the numbers of the question", " \u00d7 100"
    assert told == {
        "train_1": f"Use Ratio = A / B. {numbers}: $1,000 / 500 = <ans>2</ans>",
        "train_2": f"Use Ratio = A / B. {numbers}: 12 / 5 = <ans>2.4</ans>",
        "train_3": f"Use Share = (A / B){percent}. {numbers}: (3 / 40){percent} = <ans>7.5</ans>",
        "train_4": f"Use Growth = A / (B + 1). {numbers} the answer is <ans>7.5</ans>",
        "train_5": f"Use Ratio = A / B. {numbers}: 20 / 8 = <ans>2.5</ans>",
    }
    # Recall has to find what fits; no log is given.
    assert dataset.unseen == (Question("val_0", "Put 50 over 25.", ("2",), numeric=True),)
    assert dataset.stratum(dataset.unseen[0]) == "unseen"
