"""The parts of a response."""

from __future__ import annotations

from lag_integrations.engine.generation.reasoning import ReasoningDelta
from lag_integrations.engine.tools import CallEnded, CallFailed, Text

Part = ReasoningDelta | Text | CallEnded | CallFailed
"""A part of a response: a thought, text, or a call."""
