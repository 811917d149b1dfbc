"""Chat templates of the shapes that model families have, cut down to what tools need."""

# ruff: noqa: RUF001  (DeepSeek writes its tags with full-width bars)
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers.utils.chat_template_utils import _compile_jinja_template

_CHATML_TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
_CHATML_END = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"

CHATML = "{% for m in messages %}" + _CHATML_TURN + "{% endfor %}" + _CHATML_END

QWEN = (
    "{% if tools %}{{ '<|im_start|>system\n# Tools\n<tools>' }}"
    "{% for t in tools %}{{ '\n' + (t | tojson) }}{% endfor %}"
    "{{ '\n</tools>\nFor each call write <tool_call>\n{\"name\": ...}\n</tool_call><|im_end|>\n' }}"
    "{% endif %}{% for m in messages %}"
    "{% if m.role == 'assistant' and m.tool_calls %}{{ '<|im_start|>assistant' }}"
    "{% if m.content %}{{ '\n' + m.content }}{% endif %}"
    '{% for c in m.tool_calls %}{{ \'\n<tool_call>\n{"name": "\' + c.function.name + '
    "'\", \"arguments\": ' + (c.function.arguments | tojson) + '}\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}"
    "{% elif m.role == 'tool' %}{{ '<|im_start|>user\n<tool_response>\n' + m.content + "
    "'\n</tool_response><|im_end|>\n' }}"
    "{% else %}" + _CHATML_TURN + "{% endif %}{% endfor %}" + _CHATML_END
)

# Answers to the last question are shown with their reasoning, even where there is none.
QWEN_THINKING = QWEN.replace("assistant' }}", "assistant\n<think>\n\n</think>\n' }}")

LLAMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' and tools and loop.first %}"
    "{{ '<|start_header_id|>user<|end_header_id|>\n\nRespond with JSON for a function call, as "
    '{"name": function name, "parameters": dictionary}.\n\' }}'
    "{% for t in tools %}{{ t | tojson(indent=4) }}{{ '\n\n' }}{% endfor %}"
    "{{ m.content + '<|eot_id|>' }}"
    "{% elif m.tool_calls %}"
    "{% if m.tool_calls | length != 1 %}{{ raise_exception('only single tool-calls') }}{% endif %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    '{{ \'{"name": "\' + m.tool_calls[0].function.name + \'", "parameters": \' }}'
    "{{ m.tool_calls[0].function.arguments | tojson }}{{ '}<|eot_id|>' }}"
    "{% elif m.role == 'tool' %}"
    "{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' + (m.content | tojson) + '<|eot_id|>' }}"
    "{% else %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content }}"
    "{{ '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)

_MISTRAL_IDS = (
    "{% if c.id is not defined or c.id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}"
    "{% endif %}"
)
_MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{% if tools and loop.last %}{{ '[AVAILABLE_TOOLS]' + (tools | tojson) }}"
    "{{ '[/AVAILABLE_TOOLS]' }}{% endif %}{{ '[INST]' + m.content + '[/INST]' }}"
    "{% elif m.tool_calls %}CALLS"
    "{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS]{\"content\": ' + m.content + "
    "'}[/TOOL_RESULTS]' }}{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_NEMO = _MISTRAL.replace(
    "CALLS",
    "{{ '[TOOL_CALLS][' }}{% for c in m.tool_calls %}" + _MISTRAL_IDS + "{% set out = c.function | "
    "tojson %}{{ out[:-1] + ', \"id\": \"' + c.id + '\"}' }}{% if not loop.last %}{{ ', ' }}"
    "{% else %}{{ ']' + eos_token }}{% endif %}{% endfor %}",
)
MISTRAL_NAMED = _MISTRAL.replace(
    "CALLS",
    "{% for c in m.tool_calls %}" + _MISTRAL_IDS + "{{ '[TOOL_CALLS]' + c.function.name + "
    "'[CALL_ID]' + c.id + '[ARGS]' + (c.function.arguments | tojson) }}{% endfor %}"
    "{{ eos_token }}",
)

# Shows tools, and says how calls are to be written; cannot show calls.
GRANITE = (
    "{% if tools %}{{ '<|start_of_role|>available_tools<|end_of_role|>' + (tools | tojson) + "
    "'<|end_of_text|>\nWrite <|tool_call|> followed by a JSON list of tools used.' }}{% endif %}"
    "{% for m in messages %}{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + "
    "'<|end_of_text|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)

COMMAND = (
    "<|SOT|><|SYSTEM|>{% if tools %}{{ tools | tojson }}{% endif %}<|EOT|>"
    "{% for m in messages %}{% if m.role == 'assistant' %}<|SOT|><|CHATBOT|>"
    "{% if m.tool_calls %}<|START_THINKING|>{{ m.thoughts }}<|END_THINKING|><|START_ACTION|>[\n"
    "{% for c in m.tool_calls %}"
    '    {"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ c.function.name }}", '
    '"parameters": {{ c.function.arguments | tojson }}}{% if not loop.last %},{% endif %}\n\n'
    "{% endfor %}]<|END_ACTION|><|EOT|>"
    "{% else %}<|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|><|EOT|>{% endif %}"
    "{% elif m.role == 'tool' %}<|SOT|><|SYSTEM|><|START_TOOL_RESULT|>{{ m.content | tojson }}"
    "<|END_TOOL_RESULT|><|EOT|>"
    "{% else %}<|SOT|><|USER|>{{ m.content }}<|EOT|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|SOT|><|CHATBOT|>{% endif %}"
)

QWEN_CODER = (
    "{% if tools %}{{ '<|im_start|>system\n<tools>' }}{% for t in tools %}"
    "{{ '\n<function>\n<name>' + t.function.name + '</name>\n</function>' }}{% endfor %}"
    "{{ '\n</tools>\n<tool_call>\n<function=example>\n<parameter=p>\nvalue\n</parameter>\n"
    "</function>\n</tool_call><|im_end|>\n' }}{% endif %}{% for m in messages %}"
    "{% if m.tool_calls %}{{ '<|im_start|>assistant' }}{% for c in m.tool_calls %}"
    "{{ '\n<tool_call>\n<function=' + c.function.name + '>\n' }}"
    "{% for k, v in c.function.arguments | items %}{{ '<parameter=' + k + '>\n' + (v | string) + "
    "'\n</parameter>\n' }}{% endfor %}{{ '</function>\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% elif m.role == 'tool' %}{{ '<|im_start|>user\n<tool_response>\n' + "
    "m.content + '\n</tool_response><|im_end|>\n' }}"
    "{% else %}" + _CHATML_TURN + "{% endif %}{% endfor %}" + _CHATML_END
)

GLM = (
    "[gMASK]<sop>{% if tools %}<|system|>\n{% for t in tools %}{{ t | tojson }}{% endfor %}"
    "{% endif %}{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>\n"
    "<think></think>{% if m.content %}{{ '\n' + m.content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ '\n<tool_call>' + c.function.name }}"
    "{% for k, v in c.function.arguments.items() %}"
    "{{ '\n<arg_key>' + k + '</arg_key>\n<arg_value>' }}{{ v if v is string else v | tojson }}"
    "{{ '</arg_value>' }}{% endfor %}{{ '\n</tool_call>' }}{% endfor %}"
    "{% elif m.role == 'tool' %}<|observation|>\n<tool_response>\n{{ m.content }}\n"
    "</tool_response>{% else %}<|{{ m.role }}|>\n{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# Shows no tools, takes arguments as text only, and renders empty content after the calls, too.
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% elif m.role == 'tool' %}{{ '<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>' + m.content + "
    "'<｜tool▁output▁end｜><｜tool▁outputs▁end｜>' }}{% elif m.role == 'assistant' %}"
    "{% for c in m.tool_calls or [] %}{% if loop.first %}"
    "{{ '<｜Assistant｜><｜tool▁calls▁begin｜>' }}{% else %}{{ '\n' }}{% endif %}"
    "{{ '<｜tool▁call▁begin｜>' + c.type + '<｜tool▁sep｜>' + c.function.name + '\n```json\n' + "
    "c.function.arguments + '\n```<｜tool▁call▁end｜>' }}"
    "{% if loop.last %}{{ '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{{ '<｜Assistant｜>' + m.content + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)

HARMONY = (
    "<|start|>system<|message|>Be brief.<|end|>"
    "{% if tools %}<|start|>developer<|message|>namespace functions { "
    "{% for t in tools %}type {{ t.function.name }} = (_: any) => any;{% endfor %}}<|end|>"
    "{% endif %}{% for m in messages %}{% if m.tool_calls %}{% set c = m.tool_calls[0].function %}"
    "{{ '<|start|>assistant to=functions.' + c.name + '<|channel|>commentary json<|message|>' + "
    "(c.arguments | tojson) + '<|call|>' }}"
    "{% elif m.role == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' + "
    "m.content + ('<|return|>' if loop.last else '<|end|>') }}"
    "{% elif m.role == 'tool' %}{{ '<|start|>functions.x to=assistant<|channel|>commentary"
    "<|message|>' + (m.content | tojson) + '<|end|>' }}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)

GEMMA = (
    "{% if tools %}{{ '<|turn>system\n' }}{% for t in tools %}"
    "{{ '<|tool>declaration:' + t.function.name + '{}<tool|>' }}{% endfor %}{{ '<turn|>\n' }}"
    "{% endif %}{% for m in messages %}{{ '<|turn>' + ('model' if m.role == 'assistant' else "
    "m.role) + '\n' }}{% for c in m.tool_calls or [] %}"
    "{{ '<|tool_call>call:' + c.function.name + '{' }}{% for k, v in c.function.arguments.items() "
    "%}{{ k + ':<|\"|>' + v + '<|\"|>' }}{% if not loop.last %}"
    "{{ ',' }}{% endif %}{% endfor %}{{ '}<tool_call|>' }}{% endfor %}"
    "{{ m.content + '<turn|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% endif %}"
)

PHI = (
    "{% for t in tools or [] %}{{ '<|tool|>' + (t.function | tojson) + '<|/tool|>' }}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'tool' %}{{ '<|tool_response|>' + (m.content | tojson) "
    "+ '<|end|>' }}{% else %}{{ '<|' + m.role + '|>' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '<|tool_call|>' + (c.function | tojson) + "
    "'<|/tool_call|>' }}{% endfor %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# Refuses tools, system messages and anything that does not alternate.
STRICT = (
    "{% if tools %}{{ raise_exception('no tools') }}{% endif %}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}{{ '<start_of_turn>' + m.role + '\n' + m.content + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

# Shows tools without a word on how they are called, and no calls.
SILENT = "{% if tools %}{{ tools | tojson }}{% endif %}" + CHATML

FUNCTIONARY = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '<function=' + c.function.name + '>' + "
    "(c.function.arguments | tojson) + '</function>' }}{% endfor %}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)

# What begins a call stands in the header of every answer.
IN_HEADER = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}"
    "{{ '<|header|>' + m.role + '\n' }}{% if m.role == 'assistant' and not m.tool_calls %}"
    "{{ '>>>all\n' }}{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ '>>>' + c.function.name + '\n' + (c.function.arguments | tojson) }}{% endfor %}"
    "{{ '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|header|>assistant\n>>>' }}{% endif %}"
)

ALL = {
    "chatml": CHATML,
    "qwen": QWEN,
    "qwen_thinking": QWEN_THINKING,
    "in_header": IN_HEADER,
    "llama": LLAMA,
    "mistral_nemo": MISTRAL_NEMO,
    "mistral_named": MISTRAL_NAMED,
    "granite": GRANITE,
    "command": COMMAND,
    "qwen_coder": QWEN_CODER,
    "glm": GLM,
    "deepseek": DEEPSEEK,
    "harmony": HARMONY,
    "gemma": GEMMA,
    "phi": PHI,
    "strict": STRICT,
    "silent": SILENT,
    "functionary": FUNCTIONARY,
}


def applier(template: str) -> Callable[..., str]:
    """A template as transformers renders it."""
    compiled = _compile_jinja_template(template)

    def apply(
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        return compiled.render(
            messages=messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            bos_token="<s>",
            eos_token="</s>",
        )

    return apply
