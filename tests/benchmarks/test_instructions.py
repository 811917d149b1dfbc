"""The demands of `benchmarks.instructions`."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.instructions.__main__ import questions, topics
from benchmarks.instructions.constraints import CONSTRAINTS

PROSE = (
    "Yeast makes gas, and gas needs time. In 3 hours the dough grows to twice its size; the crust "
    "of the loaf is brown then, and it is light within. Bake it at once!"
)
MET = {
    "10 words": "Yeast needs time to make gas.",
    "30 words": "Yeast needs time to make gas.",
    "one word": "Gas.",
    "two sentences": "Yeast makes gas! It takes 1.5 hours.",
    "JSON": '```json\n{"answer": "time", "reason": "gas"}\n```',
    "lower case": "yeast needs time.",
    "capitals": "YEAST NEEDS TIME.",
    "three points": "- Yeast\n- Gas\n\n- Time",
    "four numbered": "1. Mix\n2. Fold\n3. Rest\n4. Bake",
    "ending": "It needs time. That is all.",
    "beginning": "Certainly, it needs time.",
    "no comma": "It needs time and warmth.",
    "no digit": "It needs two hours.",
    "German": "Der Teig braucht Zeit, weil die Hefe das Gas nicht sofort bildet.",
    "French": "La levure a besoin de temps pour faire des bulles, et la pâte est légère.",
    "quotation marks": '"It needs time."',
    "title": "<<Dough>> It needs time.",
    "question": "It needs time. Shall I say more?",
    "therefore": "It makes gas and therefore needs time.",
    "bold": "It needs **time**.",
}


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=lambda one: one.name)
def test_a_demand_is_told_from_what_does_not_keep_to_it(constraint):
    assert constraint.judge(MET[constraint.name])
    assert not constraint.judge("")
    assert not constraint.judge(PROSE)


def test_there_are_sixty_questions_and_as_many_of_each_demand():
    asked = list(questions())
    assert len({one.id for one in asked}) == 3 * len(topics()) == 60
    counts = Counter(one.id.split(", ")[1] for one in asked)
    assert set(counts) == {one.name for one in CONSTRAINTS}
    assert set(counts.values()) == {3}
