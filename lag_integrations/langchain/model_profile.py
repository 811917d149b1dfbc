"""What LangChain is told that a model can do."""

from __future__ import annotations

from langchain_core.language_models.model_profile import ModelProfile


def model_profile(*, held: bool) -> ModelProfile:
    """Return what the model can do.

    Args:
        held: Whether answers can be held to a form.
    """
    return ModelProfile(
        text_inputs=True,
        text_outputs=True,
        image_inputs=False,
        audio_inputs=False,
        video_inputs=False,
        tool_calling=True,
        tool_choice=held,
        structured_output=held,
    )
