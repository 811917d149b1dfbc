"""A chat model that judges runs."""

from __future__ import annotations

from langchain_core.language_models import BaseChatModel

from lag_integrations.capture.judges import YesNoJudge


class LLMJudge(YesNoJudge):
    """Ask a model whether the last response of a run solves its task.

    Calls of the judge are not captured.

    Example:
        .. code-block:: python

            handler = memory.callback_handler(judge=LLMJudge(model))

    Args:
        model: Any chat model.
        prompt: The prompt, with ``{task}`` and ``{answer}`` in it. The first yes or no of the reply
            counts.

    Raises:
        ValueError: The prompt lacks ``{task}`` or ``{answer}``.
    """

    def __init__(self, model: BaseChatModel, prompt: str | None = None) -> None:
        super().__init__(lambda text: str(model.invoke(text).text), prompt)
