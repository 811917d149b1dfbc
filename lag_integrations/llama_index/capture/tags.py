"""What LlamaIndex's ``instrument_tags`` say of a run: whose it is, and how it is labelled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_index_instrumentation.dispatcher import active_instrument_tags

from lag_integrations.capture.run_metadata import plain_metadata

_WORKFLOWS_OWN = "llamaindex."
"""What keys begin with that workflows put there themselves."""


def current_tags() -> dict[str, Any]:
    """Return the tags of the call at hand."""
    return dict(active_instrument_tags.get())


def said_of_run(tags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a log: what the tags of its run say of it."""
    return {
        key: value
        for key, value in plain_metadata(tags).items()
        if not key.startswith(_WORKFLOWS_OWN)
    }
