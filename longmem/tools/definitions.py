"""Tools as callers define them, and as chat templates take them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from longmem.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


def tool_definitions(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools in the form chat templates take: ``{"type": "function", "function": {...}}``.

    Args:
        tools: each in that form, or the inner one: name, description, parameters (a JSON schema).

    Raises:
        InputError: one is no such definition, or two have one name.
    """
    wrapped = [_definition(tool) for tool in tools]
    names = [tool["function"]["name"] for tool in wrapped]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two tools are called {twice[0]!r}; give each a name of its own")
    return wrapped


def tool_names(tools: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The names of tools, in order."""
    return tuple(tool["function"]["name"] for tool in tool_definitions(tools))


def _definition(tool: Mapping[str, Any]) -> dict[str, Any]:
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise InputError(
            f"a tool is a mapping with a name, a description and parameters, not {tool!r}"
        )
    name = inner["name"]
    if not _NAME.fullmatch(name):
        raise InputError(
            f"tool name {name!r}: use 1 to 64 letters, digits, '_', '-' and '.' of ASCII"
        )
    parameters = inner.get("parameters")
    if not isinstance(parameters, Mapping | None):
        raise InputError(f"tool {name!r}: its parameters are a JSON schema, not {parameters!r}")
    function = {
        "name": name,
        "description": str(inner.get("description") or ""),
        "parameters": {**_NO_PARAMETERS, **(parameters or {})},
    }
    _check_json(name, function)
    return {"type": "function", "function": function}


def _check_json(name: str, function: Mapping[str, Any]) -> None:
    try:
        json.dumps(function, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"tool {name!r} cannot be written as JSON: {error}") from error
