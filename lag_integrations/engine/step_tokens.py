"""Which of a trace's kept tokens are one step of its run."""

from __future__ import annotations

from lag_integrations.engine.chat_template import ChatTemplate
from lag_integrations.engine.encodable import Encodable, rendered_messages
from lag_integrations.engine.rendered import RenderedPrompt
from lag_integrations.errors import TraceError
from lag_integrations.traces.steps import steps_of
from lag_integrations.traces.trace import Trace


def step_tokens(
    trace: Trace, step: int, encodable: Encodable, format: ChatTemplate
) -> range | None:
    """Return which of the kept tokens are a step; None if not all of its tokens are kept.

    Args:
        trace: The trace.
        step: Which of its steps, see `traces.steps`.
        encodable: The trace as the model is to read it.
        format: Renders it.

    Raises:
        TraceError: The template shows nothing of the step.
        PromptError: The template refuses a part of the trace.
    """
    messages = steps_of(trace)[step]
    whole = format.render(rendered_messages(trace), generate=False)
    begin = _end(trace, messages.start, whole, format)
    end = _end(trace, messages.stop, whole, format)
    if begin >= end:
        raise TraceError(f"The chat template shows nothing of step {step}.")
    places = encodable.places()
    if begin not in places or end - 1 not in places:
        return None
    found = range(places[begin], places[end - 1] + 1)
    return found if len(found) == end - begin else None


def _end(trace: Trace, messages: int, whole: RenderedPrompt, format: ChatTemplate) -> int:
    """Return the tokens of the rendered trace up to the end of its first messages."""
    if messages == len(trace.messages):
        return len(whole.token_ids)
    before = rendered_messages(trace.model_copy(update={"messages": trace.messages[:messages]}))
    if not before:
        return 0
    text = format.render(before, generate=False).text
    if whole.text.startswith(text):
        return whole.tokens(len(text), len(text)).start
    # What follows changes what is rendered before it: the template refuses it as it is, say.
    return max((span.end for span in whole.spans if span.messages <= len(before)), default=0)
