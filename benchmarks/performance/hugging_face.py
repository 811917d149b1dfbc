"""ChatHuggingFace on the same loaded model, where langchain-huggingface is installed."""

from __future__ import annotations

from collections.abc import Callable

from lag_integrations.engine.engine import Engine

Answer = Callable[[str], str]


def chat_hugging_face(engine: Engine, tokens: int) -> Answer | None:
    """Return a function that answers a message with so many tokens; None without the package."""
    try:
        from langchain_core.messages import HumanMessage
        from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
    except ImportError:
        return None
    from transformers import GenerationConfig, pipeline

    config = GenerationConfig(max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    generator = pipeline(
        "text-generation",
        model=engine.model,
        tokenizer=engine.tokenizer,
        return_full_text=False,
        generation_config=config,
    )
    model = ChatHuggingFace(llm=HuggingFacePipeline(pipeline=generator), tokenizer=engine.tokenizer)

    def answer(text: str) -> str:
        return str(model.invoke([HumanMessage(text)]).content)

    return answer
