"""The metadata and tags in a run's config: whose run it is, and how it is labelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.callbacks import BaseCallbackManager, BaseRunManager
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config

from lag_integrations.capture.run_metadata import plain_metadata

_FRAMEWORK_PREFIXES = ("langgraph_", "checkpoint_", "ls_", "lc_", "__")
"""Prefixes of the keys that LangChain, LangGraph and LangSmith add themselves."""
_CONFIGURABLE = ("run_id", "task_id", "assistant_id", "graph_id")
"""Keys that LangGraph copies from ``configurable``."""
_STEP_PREFIXES = ("seq:step:", "map:key:", "graph:step:", "langsmith:")
"""Prefixes of the tags that LangChain adds to the steps of a chain."""


def run_metadata(metadata: Mapping[str, Any] | None, tags: Sequence[str] | None) -> dict[str, Any]:
    """Return the metadata of a log: that of its run's config, with the user's own tags."""
    labels = {
        key: value
        for key, value in plain_metadata(metadata or {}).items()
        if not key.startswith(_FRAMEWORK_PREFIXES) and key not in _CONFIGURABLE
    }
    own = [str(tag) for tag in dict.fromkeys(tags or ()) if not str(tag).startswith(_STEP_PREFIXES)]
    return {**labels, "tags": own} if own else labels


def config_of(
    config: RunnableConfig | None = None, run: BaseRunManager | None = None
) -> RunnableConfig:
    """Return the config of the call at hand, merged with what it inherits from its callers.

    Args:
        config: The config that the call was passed, where it is known.
        run: The call's run manager, where it is known.
    """
    merged = ensure_config(config)
    callbacks = merged.get("callbacks")
    if isinstance(callbacks, BaseCallbackManager):  # some callers pass nothing else
        merged["metadata"] = {**callbacks.metadata, **merged["metadata"]}
        merged["tags"] = list(dict.fromkeys([*callbacks.tags, *merged["tags"]]))
    if run is not None:
        merged["metadata"] = {**merged["metadata"], **run.metadata}
        merged["tags"] = list(run.tags)
    return merged
