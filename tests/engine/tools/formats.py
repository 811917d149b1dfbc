"""All tool formats, as they are learned from templates, and the marks that they are made of."""

from __future__ import annotations

from typing import Any

from lag_integrations.engine.tools import Event, JsonFormat, Text, learn_tool_format
from lag_integrations.engine.tools.named_format import NamedFormat
from tests.engine.tools.templates import ALL, applier

SAME = {
    "chatml",
    "strict",
    "silent",
    "phi",
    "qwen_thinking",
    "in_header",
}  # As others, but for what the template shows.
FORMATS = {
    name: learn_tool_format(applier(template)) for name, template in ALL.items() if name not in SAME
}
FORMATS["sections"] = JsonFormat(
    name="sections", begin="<calls>", opener="<call>", closer="</call>", end="</calls>"
)

MARKS = [
    *{start for form in FORMATS.values() for start in form.starts() if len(start) < 40},
    *{form.forms([]).closing for form in FORMATS.values()},
    *{form.end for form in FORMATS.values() if isinstance(form, NamedFormat)},
    *{form.closer for form in FORMATS.values() if isinstance(form, NamedFormat)},
    *(
        "```json\n",
        "```",
        "{",
        "}",
        "[",
        "]",
        '"',
        '{"name": "f", "arguments": {}}',
        "\n",
        " ",
        ";",
    ),
    *("<parameter=a>", "</parameter>", "</function>", "<arg_key>", "</arg_key>", "<arg_value>"),
    *("</arg_value>", "<|message|>", "<|call|>", "[ARGS]", "call:f{", '<|"|>', "<tool_call|>", "f"),
    *("\\", ":", ",", '"name": "f"', '"parameters": '),
]


def whole(events: list[Event]) -> tuple[str, list[Any]]:
    text = "".join(event.text for event in events if isinstance(event, Text))
    return text, [event for event in events if not isinstance(event, Text)]
