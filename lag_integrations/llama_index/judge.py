"""A LlamaIndex LLM that judges runs."""

from __future__ import annotations

from llama_index.core.llms import LLM

from lag_integrations.capture.judges import YesNoJudge


class LLMJudge(YesNoJudge):
    """Asks an LLM whether the last response of a run solves its task.

    Its own calls are not captured.

    Example:
        .. code-block:: python

            with memory.capture(judge=LLMJudge(llm)):
                await agent.run("How do we ship to Norway?")

    Args:
        llm: Any LLM.
        prompt: The question, with ``{task}`` and ``{answer}`` in it; the reply has to begin
            with yes or no.

    Raises:
        ValueError: The prompt does not have the two places.
    """

    def __init__(self, llm: LLM, prompt: str | None = None) -> None:
        super().__init__(lambda question: llm.complete(question).text, prompt)
