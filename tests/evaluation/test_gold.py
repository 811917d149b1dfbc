"""Traces made of gold knowledge."""

from __future__ import annotations

from lag_integrations.evaluation.gold import gold_trace
from lag_integrations.evaluation.questions import Question


def said(question: Question) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in gold_trace(question).messages]


def test_each_fact_is_asked_for_and_found_and_then_comes_the_answer():
    question = Question(
        "7",
        "Who leads the maker of the lamp?",
        ("Ada Berg", "A. Berg"),
        facts=(("lamp, maker", "Lux Inc."), ("Who leads Lux Inc.?", "Ada Berg")),
    )
    assert said(question) == [
        ("user", "Who leads the maker of the lamp?"),
        (
            "assistant",
            "To answer this, I need to know: lamp, maker\n<keywords>lamp, maker</keywords>",
        ),
        ("user", "lamp, maker: Lux Inc."),
        (
            "assistant",
            "To answer this, I need to know: Who leads Lux Inc.?\n"
            "<keywords>Who leads Lux Inc.?</keywords>",
        ),
        ("user", "Who leads Lux Inc.? Ada Berg."),
        (
            "assistant",
            "lamp, maker: Lux Inc. Who leads Lux Inc.? Ada Berg. The answer is <ans>Ada Berg</ans>",
        ),
    ]


def test_the_trace_is_a_success_and_says_which_question_it_is_of():
    trace = gold_trace(Question("7", "Who leads Lux?", ("Ada",)))
    assert trace.task == "Who leads Lux?"
    assert trace.outcome == "success"
    assert trace.metadata == {"question_id": "7", "made_from": "gold"}


def test_an_answer_alone_makes_two_messages():
    assert said(Question("7", "Who leads Lux?", ("Ada",))) == [
        ("user", "Who leads Lux?"),
        ("assistant", "The answer is <ans>Ada</ans>"),
    ]


def test_an_option_is_named_by_letter_and_text_after_the_solution():
    question = Question(
        "7", "What is 2 + 2?", ("C",), options=("1", "2", "4"), solution="2 + 2 is 4"
    )
    assert said(question) == [
        ("user", "What is 2 + 2?\n(A) 1\n(B) 2\n(C) 4"),
        (
            "assistant",
            "2 + 2 is 4. The right answer is option (C), 4. The answer is <ans>(C)</ans>",
        ),
    ]
    assert gold_trace(question).task == "What is 2 + 2?"  # recall searches it without the options


def test_what_ends_like_a_sentence_gets_no_second_full_stop():
    question = Question(
        "7", "What did he say?", ("B",), options=("No.", "“Yes!”"), solution="He agreed."
    )
    assert said(question)[-1][1] == (
        "He agreed. The right answer is option (B), “Yes!” The answer is <ans>(B)</ans>"
    )


def test_a_brief_last_response_holds_the_answer_alone():
    question = Question("7", "Who leads it?", ("Ada",), facts=(("its maker", "Lux"),))
    *before, last = gold_trace(question, brief=True).messages
    assert [message.text for message in before] == [text for _, text in said(question)[:-1]]
    assert last.text == "The answer is <ans>Ada</ans>"
