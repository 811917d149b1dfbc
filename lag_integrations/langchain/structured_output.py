"""Answers as objects: the parsers behind ``with_structured_output``."""

from __future__ import annotations

from operator import itemgetter
from typing import Any, Literal

from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

Method = Literal["json_schema", "function_calling", "json_mode"]


def structured_output(
    model: BaseChatModel,
    schema: Any,
    method: Method,
    *,
    include_raw: bool,
    **kwargs: Any,
) -> Runnable[LanguageModelInput, Any]:
    """A runnable that gives objects.

    Args:
        model: The model.
        schema: A pydantic class, a TypedDict, a JSON schema or an OpenAI tool; may be None for
            ``json_mode``.
        method: How the model is held to it.
        include_raw: Give ``{"raw", "parsed", "parsing_error"}``, and raise nothing.
        **kwargs: Bound to the model.

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
    shown = {
        "kwargs": {"method": method},
        "schema": None if schema is None else convert_to_openai_tool(schema),
    }
    parser: Runnable[Any, Any]
    if method == "function_calling":
        name = convert_to_openai_tool(schema)["function"]["name"]
        llm = model.bind_tools(
            [schema], tool_choice=name, ls_structured_output_format=shown, **kwargs
        )
        parser = (
            PydanticToolsParser(tools=[schema], first_tool_only=True)
            if is_class
            else JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
        )
    else:
        form: dict[str, Any] = {"type": "json_object"}
        if schema is not None:
            full = convert_to_json_schema(schema)
            named = {"name": full.get("title", "answer"), "schema": full}
            form = {"type": "json_schema", "json_schema": named}
        llm = model.bind(response_format=form, ls_structured_output_format=shown, **kwargs)
        parser = PydanticOutputParser(pydantic_object=schema) if is_class else JsonOutputParser()
    if not include_raw:
        return llm | parser
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=llm) | parsed.with_fallbacks([failed], exception_key="parsing_error")
