"""Answers held to a grammar, whatever the model would rather say."""

from __future__ import annotations

import copy
import json

import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from lag_integrations import Engine
from lag_integrations.engine.generation.constraint import Grammars
from lag_integrations.engine.generation.grammar import (
    SpecialTokens,
    json_answer,
    json_or_calls,
    text_or_calls,
    text_without,
)
from lag_integrations.engine.tools.schema import CallForms
from lag_integrations.errors import ConstraintError
from lag_integrations.traces.message import Message
from tests.conftest import random_model


@pytest.fixture(scope="module")
def wild(engine):
    """Random weights on a real tokenizer: the worst writer there is."""
    return Engine(random_model(engine.tokenizer), engine.tokenizer)


def write(engine, grammar, *, max_new_tokens=200, **sampling):
    sampling = {"temperature": 1.5, "seed": 1, **sampling}
    return engine.generate(
        [Message(role="user", content="Write.")],
        grammar=grammar,
        max_new_tokens=max_new_tokens,
        **sampling,
    )


NAMES = st.sampled_from(["name", "größe", "東京", "a b", "x_1", 'quo"te', "🙂", "back\\slash"])
LEAVES = st.sampled_from(
    [
        {"type": "string"},
        {"type": "integer"},
        {"type": "number"},
        {"type": "boolean"},
        {"type": "null"},
        {"type": "string", "minLength": 3},
        {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
        {"type": "string", "format": "date"},
        {"type": "integer", "minimum": 18, "maximum": 99},
        {"enum": ["rød", 'say "hi"', "{", 7, None]},
        {"const": "}]"},
    ]
)


def _objects(inner):
    return st.dictionaries(NAMES, inner, min_size=1, max_size=4).flatmap(
        lambda properties: st.lists(st.sampled_from(sorted(properties)), unique=True).map(
            lambda required: {
                "type": "object",
                "properties": properties,
                "required": required,
                "additionalProperties": False,
            }
        )
    )


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: (
        _objects(inner)
        | st.lists(inner, min_size=2, max_size=3).map(lambda options: {"anyOf": options})
        | inner.map(lambda items: {"type": "array", "items": items})
        | inner.map(lambda items: {"type": "array", "items": items, "minItems": 2, "maxItems": 4})
    ),
    max_leaves=8,
)


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(schema=_objects(SCHEMAS), room=st.integers(0, 60), seed=st.integers(0, 9))
def test_any_schema_any_room(wild, schema, room, seed):
    """Also with hardly more tokens than the shortest answer takes."""
    grammar = json_answer(schema)
    with pytest.raises(ConstraintError) as refused:
        write(wild, grammar, max_new_tokens=1)
    needed = int(str(refused.value).split("at least ")[1].split()[0])
    answer = write(wild, grammar, max_new_tokens=needed + room, seed=seed)
    jsonschema.validate(json.loads(answer.text), schema)
    assert len(answer.token_ids) <= needed + room


def test_recursive_schemas_end(wild):
    schema = {
        "$ref": "#/$defs/Node",
        "$defs": {
            "Node": {
                "type": "object",
                "properties": {
                    "label": {"type": "string"},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
                },
                "required": ["label", "children"],
                "additionalProperties": False,
            }
        },
    }
    for seed in range(10):
        answer = write(wild, json_answer(schema), seed=seed, max_new_tokens=80)
        jsonschema.validate(json.loads(answer.text), schema)


def test_the_real_model_says_what_it_knows_in_the_form_it_is_given(engine):
    schema = {
        "type": "object",
        "properties": {"country": {"type": "string"}, "capital": {"enum": ["Rome", "Paris"]}},
        "required": ["country", "capital"],
    }
    answer = engine.generate(
        [Message(role="user", content="What is the capital of France? Answer with JSON.")],
        grammar=json_answer(schema),
        temperature=0,
    )
    assert json.loads(answer.text)["capital"] == "Paris"
    assert answer.finish_reason == "stop"


def test_batches_are_held_to_their_forms_too(wild):
    schemas = [
        {"type": "object", "properties": {key: {"type": "string"}}, "required": [key]}
        for key in ("city", "river", "peak")
    ]

    def requests():
        return [
            wild.request(
                [Message(role="user", content="Name one, as JSON.")],
                grammar=json_answer(schema),
                max_new_tokens=30,
                temperature=0,
            )
            for schema in schemas
        ]

    together = wild.generate_batch(requests())
    alone = [wild.generate_batch([request])[0] for request in requests()]
    for answer, other, schema in zip(together, alone, schemas, strict=True):
        jsonschema.validate(json.loads(answer.text), schema)
        assert json.loads(answer.text) == json.loads(other.text)


CALL = {
    "type": "object",
    "properties": {"name": {"const": "look"}, "arguments": {"type": "object"}},
    "required": ["name", "arguments"],
    "additionalProperties": False,
}
OPENING, CLOSING = "<tool_call>\n", "\n</tool_call>"
FORMS = CallForms(OPENING, (("", CALL),), CLOSING)


def drive(grammars, grammar, tokens, seed=0, most=80):
    """Write some tokens, then whatever is allowed; gives all of them."""
    constraint = grammars.constraint(grammar, most)
    written, random = [], torch.Generator().manual_seed(seed)
    while len(written) < most and not constraint.complete:
        logits = torch.zeros(grammars.vocabulary)
        constraint.mask(logits)
        if tokens:
            token, *tokens = tokens
            assert logits[token] == 0, f"{token} may not stand after {written}"
        else:
            weights = torch.softmax(logits, 0)
            token = int(torch.multinomial(weights, 1, generator=random))
        token = constraint.vet(token, most - len(written))
        if token is None or token in grammars.ends:
            break
        constraint.accept(token)
        written.append(token)
    return written


class Compiled(Grammars):
    def __init__(self, tokenizer):
        self.vocabulary, self.ends = len(tokenizer), frozenset([tokenizer.eos_token_id])
        super().__init__(tokenizer, self.vocabulary, self.ends)


@pytest.fixture(scope="module")
def grammars(engine):
    return Compiled(engine.tokenizer)


def test_a_call_amid_text_is_whole(engine, grammars):
    """The model is free until it begins a call; then it must finish one, and is free again."""
    grammar = text_or_calls(FORMS, SpecialTokens({}))
    for seed in range(5):
        begun = engine.tokenizer("Let me see. <tool_call>")["input_ids"]
        text = engine.tokenizer.decode(drive(grammars, grammar, begun, seed))
        before, call = text.split(OPENING, 1)
        assert before == "Let me see. "
        jsonschema.validate(json.loads(call.split(CLOSING)[0]), CALL)
    # No room for a call: the answer ends before one begins.
    text = engine.tokenizer.decode(drive(grammars, grammar, begun, most=len(begun) + 3))
    assert text == "Let me see. <tool_call"


@pytest.fixture(scope="module")
def marked(engine):
    """A tokenizer whose marks are tokens of their own, as most models' are."""
    tokenizer = copy.deepcopy(engine.tokenizer)
    special_tokens = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in special_tokens])
    return tokenizer


def test_marks_that_are_tokens(marked):
    grammars = Compiled(marked)
    special_tokens = SpecialTokens.of(marked.get_added_vocab(), marked.all_special_tokens)
    grammar = text_or_calls(FORMS, special_tokens)
    for seed, thought in enumerate(("", "<think>I could <tool_call> it.</think>\n\n")):
        begun = marked(thought + "Well. <tool_call>")["input_ids"]
        text = marked.decode(drive(grammars, grammar, begun, seed))
        assert text.startswith(thought + "Well. " + OPENING)
        call = text.removeprefix(thought + "Well. " + OPENING).split(CLOSING)[0]
        jsonschema.validate(json.loads(call), CALL)
    inside = text_or_calls(FORMS, special_tokens, thinking=True)
    begun = marked("I could <tool_call> it.</think>Hello.")["input_ids"]
    assert drive(grammars, inside, begun, most=len(begun)) == begun
    none = text_without(["<tool_call>"], special_tokens)
    begun = marked("<think>Hm.</think>Hello.")["input_ids"]
    assert drive(grammars, none, begun, most=len(begun)) == begun
    with pytest.raises(AssertionError, match="may not stand"):
        drive(grammars, none, marked("Hi <tool_call>")["input_ids"])


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "email"},
        {"type": "string", "format": "uri"},
        {"type": "string", "format": "duration"},
        {"type": "string", "pattern": r"^[^@]+@[^@]+\.[^@]+$"},
        {"type": "string", "pattern": r"^\d+ km$"},
        {"type": "string", "pattern": r"^[A-Z][a-z]+ [A-Z][a-z]+$"},
        {"type": "integer", "multipleOf": 7, "minimum": 1},
        {"anyOf": [{"type": "string", "minLength": 300}, {"type": "null"}]},
        {"enum": ["no", "y" + "es" * 60]},
        {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/T"}}, {"const": 1}]},
        {"$ref": "#/$defs/T"},
    ],
    ids=str,
)
def test_forms_whose_end_is_hard_to_find(wild, schema):
    tree = {
        "anyOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": "add"}, "left": {"$ref": "#/$defs/T"}},
                "required": ["kind", "left"],
                "additionalProperties": False,
            },
            {
                "type": "object",
                "properties": {"kind": {"const": "leaf"}},
                "required": ["kind"],
                "additionalProperties": False,
            },
        ]
    }
    whole = {
        "type": "object",
        "properties": {"v": schema, "price": {"type": "number"}, "w": {"type": "string"}},
        "required": ["v", "price", "w"],
        "additionalProperties": False,
        "$defs": {"T": tree},
    }
    answer = write(wild, json_answer(whole), seed=1, max_new_tokens=70)
    jsonschema.validate(json.loads(answer.text), whole)


def test_an_end_that_is_not_found_is_not_promised(wild):
    """The mask alone then holds the answer to its form."""
    schema = {"type": "string", "pattern": r"^.*abcde\.py$"}
    text = write(wild, json_answer(schema), max_new_tokens=30).text
    assert text.startswith('"')


def test_penalties_do_not_undo_a_grammar(wild):
    schema = {"type": "array", "items": {"const": "ab"}, "minItems": 5, "maxItems": 5}
    for sampling in ({"temperature": 0}, {"temperature": 1.0}):
        answer = write(wild, json_answer(schema), no_repeat_ngram_size=2, **sampling)
        assert json.loads(answer.text) == ["ab"] * 5


def test_either_a_call_or_an_object(wild):
    answer_schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    grammar = json_or_calls(FORMS, answer_schema, SpecialTokens({}))
    kinds = set()
    for seed in range(12):
        text = write(wild, grammar, seed=seed, max_new_tokens=60).text
        if text.startswith(OPENING):
            assert text.endswith(CLOSING)
            jsonschema.validate(json.loads(text[len(OPENING) : -len(CLOSING)]), CALL)
        else:
            jsonschema.validate(json.loads(text), answer_schema)
        kinds.add(text[0])
    assert kinds == {"<", "{"}


def test_text_in_which_no_call_may_begin(engine, grammars):
    begun = engine.tokenizer("Write <tool_call")["input_ids"]
    (close,) = engine.tokenizer(">")["input_ids"]
    grammar = text_without(["<tool_call>", '{"name"'], SpecialTokens({}))
    assert drive(grammars, grammar, begun, most=len(begun)) == begun
    with pytest.raises(AssertionError, match="may not stand"):
        drive(grammars, grammar, [*begun, close])


def test_what_cannot_be_is_refused(engine):
    with pytest.raises(ConstraintError, match="cannot be held"):
        write(engine, 'start: "a')
    with pytest.raises(ConstraintError, match="max_tokens"):
        write(engine, json_answer({"type": "string", "minLength": 100}), max_new_tokens=20)
