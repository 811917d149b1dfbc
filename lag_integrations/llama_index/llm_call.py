"""One call of a `LAGLLM`: what it is asked, and which logs it is given."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse

from lag_integrations.chat.current import InjectedLogs, current_logs, current_memory
from lag_integrations.chat.remote import RemoteModel, refuse_foreign_logs
from lag_integrations.chat.reply import Reply
from lag_integrations.chat.request import build_request
from lag_integrations.chat.settings import ModelSettings
from lag_integrations.llama_index.capture.current import (
    captured_by,
    current_owner,
    current_run,
    is_choosing,
    retrieved,
)
from lag_integrations.llama_index.capture.tags import current_tags
from lag_integrations.llama_index.messages import ReplyBuilder, as_chat
from lag_integrations.llama_index.task_recall import user_texts
from lag_integrations.memory.memory import LogMemory
from lag_integrations.memory.registry import open_memories
from lag_integrations.memory.safe_recall import Recalled, attach_safely, filter_for
from lag_integrations.traces.sources import Source

if TYPE_CHECKING:
    from lag_integrations.engine.engine import Engine

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LLMCall:
    """A call, made where the LLM was called: a stream of it may be read where less is known.

    Attributes:
        llm: The LLM's own settings.
        messages: The conversation.
        settings: Those of the call.
        memory: Where logs come from.
        injected: The logs that a query engine recalled for several calls, of which this is one.
        recalled: Those of them that this call is given.
        sources: The documents that are known to be shown.
        run_id: The captured run that the call belongs to.
        captured_in: The memory that captures it.
    """

    llm: ModelSettings
    messages: Sequence[ChatMessage]
    settings: Mapping[str, Any]
    memory: LogMemory | None
    injected: InjectedLogs | None
    recalled: Recalled | None
    sources: Sequence[Source]
    run_id: str | None
    captured_in: LogMemory | None

    @classmethod
    def of(
        cls,
        llm: ModelSettings,
        messages: Sequence[ChatMessage],
        tag: Mapping[str, Any] | None,
        call_settings: Mapping[str, Any],
    ) -> LLMCall:
        """Return the call that an LLM is asked for.

        Args:
            llm: The LLM's own settings.
            messages: The conversation.
            tag: What a memory wrote into it (see `tag_of`).
            call_settings: Those of the call, which win.
        """
        settings, memory, recalled = dict(call_settings), llm.memory, None
        injected = current_logs.get()
        log_ids: list[str] | None = None
        if tag is not None:
            injected, memory = None, open_memories.find(str(tag["memory"]))
            log_ids = list(tag["log_ids"])
        elif injected is not None:
            memory, log_ids = injected.memory, []
            # A log answers the question; it does not say which tool or document to choose.
            recalled = None if is_choosing() or settings.get("k") == 0 else injected.recalled
            settings.setdefault("logs_as_text", injected.as_text)
            settings.setdefault("question", injected.question)
        sources = [*(() if injected is None else injected.shown), *retrieved()]
        if settings.get("kv_log_ids") is not None:
            sources = []  # exactly these
            recalled, log_ids = None, list(settings["kv_log_ids"])
            # The ids may be those of another memory: of the engine or memory that recalled them.
            memory = current_memory.get() or llm.memory or memory
        elif log_ids and settings.get("k") == 0:
            log_ids = []
        if log_ids is not None:
            settings["kv_log_ids"] = log_ids
        if callable(where := settings.get("where") or llm.where):
            settings["where"] = filter_for(where, current_tags())
        settings["owner"] = current_owner()
        if log_ids and memory is None:
            logger.warning("The memory of the logs that a call is given is not open: none used.")
        return cls(
            llm=llm,
            messages=messages,
            settings=settings,
            memory=memory,
            injected=injected,
            recalled=recalled,
            sources=sources,
            run_id=current_run(),
            captured_in=captured_by(),
        )

    def start(self, model: Engine | RemoteModel) -> tuple[Reply, ReplyBuilder]:
        """Recall, load the segments, and get ready to generate.

        Args:
            model: The LLM's model.

        Raises:
            SettingsError: The model runs elsewhere, and logs of a memory here are to be its KV.
        """
        settings = dict(self.settings)
        if isinstance(model, RemoteModel):
            if settings.get("kv_log_ids"):
                refuse_foreign_logs(self.memory)
        elif self.memory is not None and self.memory is not self.llm.memory:
            attach_safely(self.memory, model)
        if self.recalled is not None:
            logs = self.recalled.use(self.sources).logs
            settings["kv_log_ids"] = [log.reference for log in logs]
        tools = settings.pop("tools", None) or ()
        request = build_request(
            self.llm,
            as_chat(self.messages),
            settings,
            framework_messages=self.messages,
            tools=tools,
            shown=self.sources,
            said=user_texts(self.messages),
        )
        reply: Reply
        if isinstance(model, RemoteModel):
            reply = model.respond(request)
        else:
            from lag_integrations.chat.response import respond  # torch, when it is needed

            reply = respond(model, self.memory, request, self.captured_in)
        return reply, ReplyBuilder(reply, self.llm.model)

    def end(self, reply: ReplyBuilder) -> ChatResponse:
        """Return the whole response, and report it to the query engine that recalled."""
        response = reply.end(self.run_id)
        if self.injected is not None:
            self.injected.reports.append(dict(response.raw or {}))
        return response
