"""A step's tokens are found in every template, and its KV is a part of the whole trace's."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from lag_integrations import Trace, packaged
from lag_integrations.engine.chat_template import ChatTemplate
from lag_integrations.engine.encodable import Encodable
from lag_integrations.engine.step_tokens import step_tokens
from lag_integrations.engine.token_selection import LastResponse, TaskAndLastTurns, WholeTrace
from lag_integrations.traces.steps import steps_of
from tests.engine.test_chat_template import TEMPLATES
from tests.engine.tools import templates
from tests.traces.test_steps import RUN

PLAIN = Trace.from_messages(
    [
        {"role": "user", "content": "Alpha task ?"},
        {"role": "assistant", "content": "Beta look ."},
        {"role": "user", "content": "Gamma result ."},
        {"role": "assistant", "content": "Delta look ."},
        {"role": "user", "content": "Epsilon result ."},
        {"role": "assistant", "content": "Zeta answer ."},
    ]
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(packaged.chat_model())


def texts(run: Trace, template: ChatTemplate) -> list[str]:
    ready = Encodable.of(run, WholeTrace(), template, 4096)
    found = []
    for step in range(len(steps_of(run))):
        part = step_tokens(run, step, ready, template)
        assert part is not None
        found.append(template.tokenizer.decode([ready.token_ids[ready.keep[n]] for n in part]))
    return found


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("earlier", [False, True])
def test_each_step_holds_its_own_messages_alone(tokenizer, name, earlier):
    before = Trace.from_messages(
        [{"role": "user", "content": "Eta ?"}, {"role": "assistant", "content": "Theta ."}]
    )
    run = PLAIN.model_copy(update={"earlier": before.messages}) if earlier else PLAIN
    found = texts(run, ChatTemplate(tokenizer, TEMPLATES[name]))
    words = ("Alpha", "Beta", "Gamma", "Delta", "Epsilon", "Zeta", "Eta", "Theta")
    assert [[word for word in words if word in text] for text in found] == [
        ["Beta", "Gamma"],
        ["Delta", "Epsilon"],
        ["Zeta"],
    ]


@pytest.mark.parametrize("name", templates.ALL)
def test_calls_belong_to_the_step_that_made_them(tokenizer, name):
    template = ChatTemplate(tokenizer, templates.ALL[name])
    first, second, third = texts(RUN, template)
    assert ("hours" in first, "9 to 5" in first, "Yes." in first) == (True, True, False)
    assert ("time" in second, "16:30" in second, "CET" in second) == (True, True, True)
    assert ("hours" in second, "zone" in first, "zone" in third) == (False, False, False)
    assert third.count("Yes.") == 1


def test_of_what_was_not_kept_there_are_no_tokens(tokenizer):
    template = ChatTemplate(tokenizer)
    kept = Encodable.of(PLAIN, LastResponse(), template, 4096)
    assert step_tokens(PLAIN, 0, kept, template) is None
    short = Encodable.of(PLAIN, TaskAndLastTurns(20), template, 4096)
    assert [step_tokens(PLAIN, step, short, template) for step in (0, 2)] == [None, range(10, 20)]
    cut = Encodable.of(PLAIN, WholeTrace(), template, 40)
    assert step_tokens(PLAIN, 0, cut, template) is None
    assert step_tokens(PLAIN, 2, cut, template) == range(len(cut.keep) - 10, len(cut.keep))
