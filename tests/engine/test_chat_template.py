from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from lag_integrations import Message, ToolCall, Trace, packaged
from lag_integrations.engine.chat_template import ChatTemplate
from lag_integrations.engine.token_selection import (
    LastAction,
    LastResponse,
    LastResponses,
    WholeTrace,
    WithoutContext,
)
from lag_integrations.errors import PromptError, TraceError
from tests.engine.tools import templates

# The ways in which chat templates differ, in small.
TEMPLATES = {
    "packaged": None,
    "headers": "{{ '<s>' }}{% for m in messages %}<h>{{ m.role }}</h>\n\n{{ m.content | trim }}<e>"
    "{% endfor %}{% if add_generation_prompt %}<h>assistant</h>\n\n{% endif %}",
    "system_in_user": "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}"
    "{% set rest = messages[1:] %}{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}[I] {% if loop.first and s %}<<{{ s }}>>\n\n"
    "{% endif %}{{ m.content }} [/I]{% else %} {{ m.content }} </s>{% endif %}{% endfor %}",
    "system_last": "{{ '<s>' }}{% if messages[0].role == 'system' %}"
    "{% set s = messages[0].content %}{% set rest = messages[1:] %}{% else %}{% set s = '' %}"
    "{% set rest = messages %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}[I] "
    "{% if loop.last and s %}{{ s }}\n\n{% endif %}{{ m.content }} [/I]{% else %} {{ m.content }}"
    "</s>{% endif %}{% endfor %}",
    "strict": "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<t>{{ m.role }}\n{{ m.content }}</t>\n"
    "{% endfor %}{% if add_generation_prompt %}<t>assistant\n{% endif %}",
    "drops_reasoning": "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "assistant"},  # a content that also occurs in headers
    {"role": "assistant", "content": "<think>hm</think>Noted."},
    {"role": "user", "content": "  And the sea?\n"},
    {"role": "assistant", "content": "Blue\n<ans>deep blue</ans>"},
]


# Layouts in which contents or tool calls change what is rendered around them.
REASONING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WRAPPING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
    "{% if '</think>' in m.content %}<think>\n"
    "{{ m.content.split('</think>')[0].replace('<think>', '').strip() }}\n</think>\n\n"
    "{{ m.content.split('</think>')[-1].lstrip() }}{% else %}<think>\n\n</think>\n\n"
    "{{ m.content }}{% endif %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = (
    "{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n"
    "{{ m.content }}\n</tool_response><|im_end|>\n{% else %}<|im_start|>{{ m.role }}"
    "{% if m.content %}\n{{ m.content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    "{{ c.function.name }} {{ c.function.arguments | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ONE_CALL = (
    "{% for m in messages %}{% if m.tool_calls and m.tool_calls | length > 1 %}"
    "{{ raise_exception('only one tool call') }}{% endif %}<h>{{ m.role }}</h>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }}]{% endfor %}<e>{% endfor %}"
    "{% if add_generation_prompt %}<h>assistant</h>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(packaged.chat_model())


@pytest.fixture(params=TEMPLATES)
def chat_format(request, tokenizer):
    return ChatTemplate(tokenizer, TEMPLATES[request.param])


def decode(chat_format, token_ids):
    return chat_format.tokenizer.decode(token_ids)


@pytest.mark.parametrize("name", ["llama", "mistral_nemo", "harmony"])
def test_a_template_that_shows_no_text_beside_calls(tokenizer, name):
    """An agent that says something and calls a tool goes on."""
    call = {"id": "123456789", "name": "hours", "args": {}}
    run = Trace.from_messages(
        [
            {"role": "user", "content": "Is it open?"},
            {"role": "assistant", "content": "I look.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "123456789", "content": "9 to 5"},
        ]
    )
    rendered = ChatTemplate(tokenizer, templates.ALL[name]).render(run.messages)
    assert "hours" in rendered.text
    assert "I look." not in rendered.text
    assert rendered.text.index("hours") < rendered.text.index("9 to 5")


def test_spans_cover_contents_in_every_template(chat_format):
    messages = Trace.from_messages(CHAT).messages
    rendered = chat_format.render(messages, generate=False)
    assert decode(chat_format, rendered.token_ids) == rendered.text
    for span in rendered.spans:
        begin, end = span.characters
        kept = decode(chat_format, rendered.token_ids[span.content_start : span.content_end])
        # A character at an edge may share a token with the turn's header or end.
        assert rendered.text[begin:end].strip() in kept
        assert len(kept) <= end - begin + 4
        assert span.start <= span.content_start <= span.content_end <= span.end
    contents = [rendered.text[slice(*span.characters)].strip() for span in rendered.spans]
    assert contents[-1] == "Blue\n<ans>deep blue</ans>"
    assert any("And the sea?" in content for content in contents)
    responses = [span for span in rendered.spans if span.role == "assistant"]
    assert responses[-1].characters == rendered.spans[-1].characters


def test_a_system_message_that_stands_in_the_last_turn(tokenizer):
    """As in Mistral's templates."""
    messages = Trace.from_messages([*CHAT, {"role": "user", "content": "Why?"}]).messages
    rendered = ChatTemplate(tokenizer, TEMPLATES["system_last"]).render(messages)
    assert [span.role for span in rendered.spans] == [
        *("user", "assistant", "user", "assistant", "system", "user"),
    ]
    assert [rendered.text[slice(*span.characters)].strip() for span in rendered.spans] == [
        *(message["content"].strip() for message in CHAT[1:]),
        "Be brief.",
        "Why?",
    ]
    assert [span.messages for span in rendered.spans] == [2, 3, 4, 5, 5, 6]
    assert rendered.head == rendered.spans[0].start, "no turn is shared with others"


def test_head_ends_before_the_first_turn_and_is_shared(chat_format):
    """Segments stand behind the system message: it must be the same tokens whatever follows."""
    chats = [
        [CHAT[0], {"role": "user", "content": content}] for content in ("Hello", "x" * 50, "<|a")
    ]
    rendered = [chat_format.render(Trace.from_messages(chat).messages) for chat in chats]
    heads = {tuple(one.token_ids[: one.head]) for one in rendered}
    assert len(heads) == 1
    head = decode(chat_format, heads.pop())
    assert "Hello" not in head
    assert not head or "Be brief." in head or head == "<s>"


def test_the_line_of_the_question(chat_format):
    first = "The sea is blue. What is it?"
    content = f"{first}\n\nQuestion: What is it?\nAnswer:"
    messages = [*CHAT[:-1], CHAT[-1], {"role": "user", "content": content}]
    rendered = chat_format.render(Trace.from_messages(messages).messages)

    def question(words):
        return decode(chat_format, rendered.token_ids[rendered.question(words) :]).lstrip()

    assert question(" What is it?\n").startswith("Question: What is it?\nAnswer:")
    for words in (None, "", "What was it?", "The sea is blue."):
        assert question(words).startswith(first)


def test_head_holds_a_default_system_message(tokenizer):
    rendered = ChatTemplate(tokenizer).render(Trace.from_messages([CHAT[1]]).messages)
    head = tokenizer.decode(rendered.token_ids[: rendered.head])
    assert head.startswith("<|im_start|>system\n")
    assert head.endswith("<|im_end|>\n")


def test_selections(tokenizer):
    rendered = ChatTemplate(tokenizer).render(Trace.from_messages(CHAT).messages, generate=False)

    def kept(selection):
        return tokenizer.decode([rendered.token_ids[index] for index in selection.keep(rendered)])

    assert kept(LastResponse()) == "Blue\n<ans>deep blue</ans>"
    assert kept(LastResponses(2)) == "<think>hm</think>Noted.Blue\n<ans>deep blue</ans>"
    assert kept(LastAction()) == "<ans>deep blue</ans>"
    assert kept(WholeTrace()).startswith("<|im_start|>user\nassistant<|im_end|>")
    assert kept(WholeTrace()).endswith("</ans><|im_end|>\n")
    assert kept(WithoutContext(LastResponse())) == kept(LastResponse())
    assert not WithoutContext(LastResponse()).in_context
    names = {
        s.name for s in (LastResponse(), LastResponses(2), LastAction(), WholeTrace(),
                         WithoutContext(LastAction()))
    }  # fmt: skip
    assert len(names) == 5


@pytest.mark.parametrize(
    ("content", "action"),
    [
        ("I think <keywords>sea colour</keywords>", "<keywords>sea colour</keywords>"),
        ("<subquestion>Why?</subquestion> <ans>No</ans>", "<ans>No</ans>"),
        ("Thought 3: so.\nAction 3: Finish[blue]", "Action 3: Finish[blue]"),
        ("It is blue.", "It is blue."),
    ],
)
def test_last_action(tokenizer, content, action):
    trace = Trace.from_messages([CHAT[1], {"role": "assistant", "content": content}])
    rendered = ChatTemplate(tokenizer).render(trace.messages, generate=False)
    kept = [rendered.token_ids[index] for index in LastAction().keep(rendered)]
    assert tokenizer.decode(kept).strip() == action


def test_selection_without_a_response_is_refused(tokenizer):
    rendered = ChatTemplate(tokenizer).render(Trace.from_messages(CHAT[:2]).messages)
    with pytest.raises(TraceError, match="no assistant response"):
        LastResponse().keep(rendered)


def test_tool_calls_are_shown_even_where_the_template_knows_none(tokenizer):
    trace = Trace.from_messages(
        [
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"name": "look", "args": {"a": 1}}],
            },
            {"role": "tool", "content": "Rain"},
            {"role": "assistant", "content": "Rain."},
        ]
    )
    text = ChatTemplate(tokenizer).render(trace.messages, generate=False).text
    assert '<tool_call>\n{"name": "look", "arguments": {"a": 1}}\n</tool_call>' in text
    assert "<|im_start|>user\n<tool_response>\nRain\n</tool_response><|im_end|>" in text
    strict = (
        ChatTemplate(tokenizer, TEMPLATES["strict"]).render(trace.messages, generate=False).text
    )
    assert "<t>user\n<tool_response>\nRain\n</tool_response></t>" in strict


@pytest.mark.parametrize("template", ["packaged", "tools", "strict"])
def test_results_are_shown_in_the_order_of_their_calls(tokenizer, template):
    """Their ids are not."""
    chat_format = ChatTemplate(tokenizer, {**TEMPLATES, "tools": TOOLS}[template])
    calls = tuple(
        ToolCall(name="price", args={"of": of}, id=f"call-{of}") for of in ("coffee", "tea")
    )
    asked = [Message(role="user", content="Prices?"), Message(role="assistant", tool_calls=calls)]
    coffee, tea = (
        Message(role="tool", content=price, tool_call_id=call.id)
        for call, price in zip(calls, ("30", "20"), strict=True)
    )
    rendered = chat_format.render([*asked, tea, coffee])
    assert rendered == chat_format.render([*asked, coffee, tea])
    assert "call-" not in rendered.text
    assert 0 < rendered.text.index("30") < rendered.text.index("20")


def test_an_open_assistant_message_is_continued(tokenizer):
    messages = Trace.from_messages([CHAT[1], {"role": "assistant", "content": "The answer is"}])
    rendered = ChatTemplate(tokenizer).render(messages.messages)
    assert rendered.text.endswith("<|im_start|>assistant\nThe answer is")


def test_a_tokenizer_without_template_is_refused(tokenizer):
    bare = AutoTokenizer.from_pretrained(packaged.chat_model())
    bare.chat_template = None
    with pytest.raises(PromptError, match="chat_template="):
        ChatTemplate(bare)
    with pytest.raises(PromptError, match="no messages"):
        ChatTemplate(tokenizer).render([])


def last_response(tokenizer, template, messages):
    rendered = ChatTemplate(tokenizer, template).render(
        Trace.from_messages(messages).messages, generate=False
    )
    return tokenizer.decode([rendered.token_ids[i] for i in LastResponse().keep(rendered)])


@pytest.mark.parametrize(
    ("template", "kept"),
    [(REASONING, "It is 7."), (WRAPPING, "hm\n</think>\n\nIt is 7.")],
)
def test_a_response_that_the_template_rewrites_is_still_found(tokenizer, template, kept):
    turns = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "First I look."},
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "<think>hm</think>\n\nIt is 7."},
    ]
    assert last_response(tokenizer, template, turns) == kept
    assert last_response(tokenizer, template, turns[2:]) == kept


def test_a_short_answer_is_not_mistaken_for_an_argument_or_a_result(tokenizer):
    call = {"name": "calc", "args": {"x": "42"}, "id": "1"}
    turns = [
        {"role": "user", "content": "What is x?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
        {"role": "assistant", "content": "42"},
    ]
    rendered = ChatTemplate(tokenizer, TOOLS).render(
        Trace.from_messages(turns).messages, generate=False
    )
    assert rendered.spans[-1].characters[0] == rendered.text.rindex("42")
    assert rendered.spans[-2].characters[0] == rendered.text.index("<tool_response>\n42") + 16
    assert '{"x": "42"}' in rendered.text


def test_a_template_that_refuses_the_calls_gets_them_as_text(tokenizer):
    calls = [{"name": "look", "args": {"at": place}} for place in ("sea", "sky")]
    turns = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "blue"},
        {"role": "assistant", "content": "Both are blue."},
    ]
    text = ChatTemplate(tokenizer, ONE_CALL).render(Trace.from_messages(turns).messages).text
    assert '"sea"' in text
    assert '"sky"' in text


def test_a_template_that_hides_the_response_is_refused(tokenizer):
    hiding = (
        "{% for m in messages %}<h>{{ m.role }}</h>{{ m.content if loop.index < 5 }}{% endfor %}"
    )
    turns = [{"role": role, "content": "x y"} for role in ("user", "assistant") * 3]
    with pytest.raises(PromptError, match="does not show the last response"):
        ChatTemplate(tokenizer, hiding).render(Trace.from_messages(turns).messages, generate=False)
