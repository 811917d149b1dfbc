"""Selectors and question generators that choose what a test tells them to."""

from __future__ import annotations

from collections.abc import Callable

from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion


class Selects(BaseSelector):
    """Selects the first of the choices; as many as it is told to."""

    def __init__(self, most: int) -> None:
        self._most = most

    def _select(self, choices, query):
        chosen = range(min(self._most, len(choices)))
        return SelectorResult(selections=[SingleSelection(index=n, reason="") for n in chosen])

    async def _aselect(self, choices, query):
        return self._select(choices, query)

    def _get_prompts(self):
        return {}

    def _update_prompts(self, prompts):
        pass


class Asks(BaseQuestionGenerator):
    """Asks each tool the questions that are made of the query."""

    def __init__(self, questions: Callable[[str], list[str]]) -> None:
        self._questions = questions

    def generate(self, tools, query):
        return [
            SubQuestion(sub_question=question, tool_name=tool.name)
            for tool in tools
            for question in self._questions(query.query_str)
        ]

    async def agenerate(self, tools, query):
        return self.generate(tools, query)

    def _get_prompts(self):
        return {}

    def _update_prompts(self, prompts):
        pass
