"""Tools and structured output: the runnables whose answers are calls or objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Literal

from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from lag_integrations.engine.tools import ToolChoice, select


class ToolCallingChatModel(BaseChatModel):
    """A chat model that takes ``tools``, ``tool_choice`` and ``response_format`` in a call."""

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: ToolChoice = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return a runnable whose answers may call tools.

        Args:
            tools: Functions, tools, pydantic classes, TypedDicts or schemas.
            tool_choice: ``auto``; ``any``, ``required`` or True for some tool; a tool's name (or
                OpenAI's dict form) for that one; ``none``. All but ``auto`` are enforced while the
                model writes (extra ``constrained``).
            **kwargs: Bound to each call.

        Raises:
            ToolChoiceError: The choice names no known tool.
        """
        schemas = [convert_to_openai_tool(tool) for tool in tools]
        select(schemas, tool_choice)
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        return self.bind(tools=schemas, **kwargs)

    def with_structured_output(
        self,
        schema: Any = None,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Return a runnable whose answers are objects that fit a schema.

        Args:
            schema: A pydantic class (its objects are returned), a TypedDict, a JSON schema or an
                OpenAI tool (dicts are returned).
            method: ``json_schema`` (the answer is the object), ``function_calling`` (a call of a
                tool with these arguments) or ``json_mode`` (as ``json_schema``; without a schema,
                any JSON object).
            include_raw: Return ``{"raw", "parsed", "parsing_error"}``, and raise nothing.
            strict: Accepted as other chat models do; answers always fit the schema.
            **kwargs: Bound to each call.

        Raises:
            ValueError: The method is unknown, or has no schema.
        """
        if method not in ("json_schema", "function_calling", "json_mode"):
            raise ValueError(
                f"There is no method {method!r}; use json_schema, function_calling or json_mode."
            )
        if schema is None and method != "json_mode":
            raise ValueError(f"The method {method} needs a schema; pass one, or use json_mode.")
        if isinstance(schema, dict):
            if isinstance(schema.get("schema"), dict):  # OpenAI's form, with name and strict
                schema = {"title": schema.get("name", "answer"), **schema["schema"]}
            if "parameters" not in schema and "function" not in schema:
                schema = {"title": "answer", **schema}
        is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
        kwargs["ls_structured_output_format"] = {
            "kwargs": {"method": method},
            "schema": None if schema is None else convert_to_openai_tool(schema),
        }
        llm: Runnable[LanguageModelInput, AIMessage]
        parser: Runnable[Any, Any]
        if method == "function_calling":
            name = convert_to_openai_tool(schema)["function"]["name"]
            llm = self.bind_tools([schema], tool_choice=name, **kwargs)
            parser = (
                PydanticToolsParser(tools=[schema], first_tool_only=True)
                if is_class
                else JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
            )
        else:
            llm = self.bind(response_format=_response_format(schema), **kwargs)
            parser = (
                PydanticOutputParser(pydantic_object=schema) if is_class else JsonOutputParser()
            )
        if not include_raw:
            return llm | parser
        parsed = RunnablePassthrough.assign(
            parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
        )
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=llm) | parsed.with_fallbacks([failed], exception_key="parsing_error")


def _response_format(schema: Any) -> dict[str, Any]:
    if schema is None:
        return {"type": "json_object"}
    json_schema = convert_to_json_schema(schema)
    named = {"name": json_schema.get("title", "answer"), "schema": json_schema}
    return {"type": "json_schema", "json_schema": named}
