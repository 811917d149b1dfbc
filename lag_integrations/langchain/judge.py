"""A chat model that judges runs."""

from __future__ import annotations

from langchain_core.language_models import BaseChatModel

from lag_integrations.capture.judges import YesNoJudge


class LLMJudge(YesNoJudge):
    """Asks a model whether the last response of a run solves its task.

    Its own calls are not captured.

    Example:
        .. code-block:: python

            handler = memory.callback_handler(judge=LLMJudge(model))

    Args:
        model: Any chat model.
        prompt: What it is asked, with ``{task}`` and ``{answer}`` in it; the reply has to begin
            with yes or no.

    Raises:
        ValueError: The prompt does not have the two places.
    """

    def __init__(self, model: BaseChatModel, prompt: str | None = None) -> None:
        super().__init__(lambda question: str(model.invoke(question).text), prompt)
