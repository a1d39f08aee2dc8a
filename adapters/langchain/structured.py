"""Replies that fit a schema, parsed: what `ChatLongMem.with_structured_output` gives.

json_schema       the reply itself is constrained, token by token, to JSON that fits the schema
function_calling  the schema is bound as a tool, and the model must call it
json_mode         the reply is constrained to some JSON object; the prompt has to say which
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import (
    JsonOutputKeyToolsParser,
    PydanticToolsParser,
)
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from longmem.errors import InputError

if TYPE_CHECKING:
    from longmem.adapters.langchain.chat_model import ChatLongMem


def structured(
    chat: ChatLongMem, schema: Any, method: str, include_raw: bool, options: dict[str, Any]
) -> Runnable[Any, Any]:
    """`chat`, constrained to `schema`, and a parser behind it.

    Args:
        chat: the model.
        schema: a pydantic class (the result is an instance), a TypedDict, a JSON schema or an
            OpenAI tool (the result is a dict).
        method: see the module.
        include_raw: give ``{"raw", "parsed", "parsing_error"}`` instead of raising.
        options: further keyword arguments for each call; `strict` says nothing here, as the reply
            always fits.

    Raises:
        InputError: there is no such method, or `schema` is none.
    """
    options.pop("strict", None)
    traced = {"kwargs": {"method": method}, "schema": schema}
    if method == "function_calling":
        model, parser = _called(chat, schema, {**options, "ls_structured_output_format": traced})
    elif method in ("json_schema", "json_mode"):
        wanted = {"type": "json_object"} if method == "json_mode" else _response_format(schema)
        model = chat.bind(response_format=wanted, ls_structured_output_format=traced, **options)
        parser = _parser(schema)
    else:
        raise InputError(
            f"there is no method {method!r}; choose json_schema, function_calling or json_mode"
        )
    return _with_raw(model, parser) if include_raw else model | parser


def _called(
    chat: ChatLongMem, schema: Any, options: dict[str, Any]
) -> tuple[Runnable[Any, Any], Runnable[Any, Any]]:
    name = convert_to_openai_tool(schema)["function"]["name"]
    model = chat.bind_tools([schema], tool_choice=name, **options)
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        return model, PydanticToolsParser(tools=[schema], first_tool_only=True)
    return model, JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)


def _response_format(schema: Any) -> dict[str, Any]:
    fitting = convert_to_json_schema(schema)
    named = {"name": fitting.get("title", "reply"), "schema": fitting}
    return {"type": "json_schema", "json_schema": named}


def _parser(schema: Any) -> Runnable[Any, Any]:
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        return PydanticOutputParser(pydantic_object=schema)
    return JsonOutputParser()


def _with_raw(model: Runnable[Any, Any], parser: Runnable[Any, Any]) -> Runnable[Any, Any]:
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")
