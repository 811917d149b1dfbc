"""What an agent's response says."""

from __future__ import annotations

import pytest

from lag_integrations.evaluation.questions import Question
from lag_integrations.evaluation.tags import answer_of, query_of

OPEN = Question("q", "Where?", ("Lima",))
NUMBER = Question("q", "How many?", ("3",), numeric=True)
CHOICE = Question("q", "Where?", ("B",), options=("Rome", "Lima", "Oslo, I think"))


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("It is in Peru. <ans>Lima</ans>", "Lima"),
        ("<ans>Rome</ans> No: <ans>\n Lima </ans>", "Lima"),
        ("<ans>Lima", "Lima"),
        ("It is Lima.", None),
        ("<ans></ans>", None),
        ("<ans>Rome</ans> or <ans> </ans>", None),
        ("<keywords>Lima</keywords>", None),
    ],
)
def test_an_answer_is_what_stands_in_its_last_tag(response, answer):
    assert answer_of(response, OPEN) == answer


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("(B)", "B"),
        ("B", "B"),
        ("B.", "B"),
        ("(B) Lima", "B"),
        ("lima.", "B"),
        ("Oslo, I think", "C"),
        ("Berlin", "Berlin"),
        ("(D)", "(D)"),
        ("(b)", "B"),
        ("Option B", "B"),
        ("B) Lima", "B"),
        ("A rise in pressure", "A rise in pressure"),
    ],
)
def test_an_option_is_named_by_its_letter_or_its_text(said, letter):
    assert answer_of(f"<ans>{said}</ans>", CHOICE) == letter


@pytest.mark.parametrize(
    ("response", "query"),
    [
        ("I lack this. <keywords>capital Peru</keywords>", "capital Peru"),
        ("<keywords>a</keywords> <keywords>b</keywords>", "b"),
        ("<subquestion>a?</subquestion><subquestion>b?</subquestion>", "a? b?"),
        ("<subquestion>a?</subquestion><subquestion>a?</subquestion>", "a?"),
        ("I do not know.", "I do not know."),
        ("<keywords></keywords>", "<keywords></keywords>"),
    ],
)
def test_what_is_searched_for_is_what_the_tags_ask(response, query):
    assert query_of(response) == query


@pytest.mark.parametrize(
    ("response", "answer"),
    [("1 + 2 = <ans>3</ans>, or 4", "3"), ("1 + 2 = 3.", "3."), ("<ans></ans> 7", "7"), ("", None)],
)
def test_a_number_needs_no_tag(response, answer):
    assert answer_of(response, NUMBER) == answer
