"""What a run's config says: whose run it is, and how it is labelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.callbacks import BaseCallbackManager, BaseRunManager
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config

from lag_integrations.capture.run_metadata import plain_metadata

_FRAMEWORKS = ("langgraph_", "checkpoint_", "ls_", "lc_", "__")
"""What keys begin with that LangChain, LangGraph and LangSmith put there themselves."""
_FRAMEWORKS_OWN = ("run_id", "task_id", "assistant_id", "graph_id")
"""Keys that LangGraph copies from ``configurable``."""
_STEPS = ("seq:step:", "map:key:", "graph:step:", "langsmith:")
"""What the tags begin with that LangChain gives the steps of a chain."""


def said_of_run(metadata: Mapping[str, Any] | None, tags: Sequence[str] | None) -> dict[str, Any]:
    """Return the metadata of a log: what the config of its run says of it."""
    said = {
        key: value
        for key, value in plain_metadata(metadata or {}).items()
        if not key.startswith(_FRAMEWORKS) and key not in _FRAMEWORKS_OWN
    }
    own = [str(tag) for tag in dict.fromkeys(tags or ()) if not str(tag).startswith(_STEPS)]
    return {**said, "tags": own} if own else said


def config_of(
    config: RunnableConfig | None = None, run: BaseRunManager | None = None
) -> RunnableConfig:
    """Return the config of the call at hand, with what it has from those that called it.

    Args:
        config: What the call was given, where that is known.
        run: The call's own, where that is known.
    """
    whole = ensure_config(config)
    callbacks = whole.get("callbacks")
    if isinstance(callbacks, BaseCallbackManager):  # some callers hand on nothing else
        whole["metadata"] = {**callbacks.metadata, **whole["metadata"]}
        whole["tags"] = list(dict.fromkeys([*callbacks.tags, *whole["tags"]]))
    if run is not None:
        whole["metadata"] = {**whole["metadata"], **run.metadata}
        whole["tags"] = list(run.tags)
    return whole
