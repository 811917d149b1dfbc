"""Metadata of a run from LlamaIndex's ``instrument_tags``: whose it is, how it is labelled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_index_instrumentation.dispatcher import active_instrument_tags

from lag_integrations.capture.run_metadata import plain_metadata

_WORKFLOWS_OWN = "llamaindex."
"""Prefix of the keys that workflows add themselves."""


def current_tags() -> dict[str, Any]:
    """Return the tags of the call at hand."""
    return dict(active_instrument_tags.get())


def run_metadata(tags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata that the tags of a run give its log."""
    return {
        key: value
        for key, value in plain_metadata(tags).items()
        if not key.startswith(_WORKFLOWS_OWN)
    }
