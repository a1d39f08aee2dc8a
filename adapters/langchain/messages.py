"""LangChain's messages as the dialogue's, and its tools as JSON schemas."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from longmem.dialogue import Message
from longmem.errors import InputError
from longmem.tools import ToolCall

ToolLike = Mapping[str, Any] | type | Callable[..., Any] | BaseTool
"""What `ChatLongMem.bind_tools` takes."""

_ROLES = {"human": "user", "ai": "assistant", "developer": "system", "function": "tool"}
_CALLS = ("tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "server_tool_call")
"""Blocks that say once more what `AIMessage.tool_calls` says."""


def as_messages(messages: Sequence[BaseMessage]) -> tuple[Message, ...]:
    """The dialogue's messages, in order, with LangChain's ids.

    Raises:
        InputError: a message holds something else than text (an image, audio, a file), or is of a
            class that is no part of a conversation.
    """
    return tuple(_as_message(message) for message in messages)


def _as_message(message: BaseMessage) -> Message:
    text, reasoning = _text(message)
    match message:
        case SystemMessage():
            return Message("system", text, id=message.id)
        case HumanMessage():
            return Message("user", text, id=message.id)
        case AIMessage():
            said = str(message.additional_kwargs.get("reasoning_content") or reasoning)
            return Message(
                "assistant", text, id=message.id, tool_calls=_calls(message), reasoning=said
            )
        case ToolMessage():
            call, name = message.tool_call_id, message.name
            return Message("tool", text, id=message.id, tool_call_id=call, name=name)
        case FunctionMessage():
            return Message("tool", text, id=message.id, name=message.name)
        case ChatMessage():
            return Message(_ROLES.get(message.role, message.role), text, id=message.id)
    raise InputError(
        f"a {type(message).__name__} cannot be read by a model; give system, human, AI and tool "
        "messages"
    )


def _calls(message: AIMessage) -> tuple[ToolCall, ...]:
    return tuple(
        ToolCall(call["id"] or "", call["name"], json.dumps(call["args"], ensure_ascii=False))
        for call in message.tool_calls
    )


def _text(message: BaseMessage) -> tuple[str, str]:
    """The text of a message's blocks, and their reasoning."""
    if isinstance(message.content, str):
        return message.content, ""
    texts, reasoning = [], []
    for block in message.content:
        if isinstance(block, str):
            texts.append(block)
            continue
        kind = block.get("type")
        if kind == "text":
            texts.append(str(block.get("text") or ""))
        elif kind in ("reasoning", "thinking"):
            reasoning.append(str(block.get("reasoning") or block.get("thinking") or ""))
        elif kind not in _CALLS:
            raise InputError(
                f"a {type(message).__name__} holds a block of type {kind!r}, and longmem reads text "
                "only; describe it in words, or leave it out"
            )
    return "".join(texts), "".join(reasoning)


def as_functions(tools: Sequence[ToolLike]) -> list[dict[str, Any]]:
    """Tools as OpenAI's ``{"name", "description", "parameters"}``.

    Raises:
        InputError: one of them is no tool.
    """
    functions = []
    for tool in tools:
        try:
            function = convert_to_openai_tool(tool)["function"]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{tool!r} cannot be read as a tool: {error}; give a function with a docstring and "
                "type hints, a pydantic class, a BaseTool or an OpenAI tool definition"
            ) from error
        fields = ("name", "description", "parameters")
        functions.append({name: function[name] for name in fields if name in function})
    return functions


def as_tool_choice(choice: Any, names: Sequence[str]) -> str:
    """What LangChain's `tool_choice` means: "auto", "none", "required" or a tool's name.

    Raises:
        InputError: it names no tool that was given.
    """
    if isinstance(choice, Mapping):
        function = choice.get("function")
        choice = function.get("name") if isinstance(function, Mapping) else choice.get("type")
    if choice in (None, False, "auto"):
        return "auto"
    if choice in (True, "any", "required"):
        return "required"
    if choice == "none" or choice in names:
        return str(choice)
    raise InputError(
        f"tool_choice is {choice!r}, but the tools are {', '.join(names) or 'none'}; choose one of "
        'them, or "auto", "any" or "none"'
    )
