"""Tools for models whose chat template takes none: the prompt that Hermes models are trained on.

Format: https://github.com/NousResearch/Hermes-Function-Calling; Qwen2.5 and Qwen3 use the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from longmem.tools.calls import ToolCall
from longmem.tools.definitions import tool_definitions

RESPONSE_TAGS = ("<tool_response>\n", "\n</tool_response>")
"""Around a tool's result, where the template has no role for it."""


def hermes_system_prompt(system: str, tools: Sequence[Mapping[str, Any]]) -> str:
    """A system prompt that tells of the tools and how to call them.

    Args:
        system: the caller's own prompt; "" for none.
        tools: definitions, as for `tool_definitions`.

    Raises:
        InputError: something in `tools` is no definition.
    """
    listed = [json.dumps(tool, ensure_ascii=False) for tool in tool_definitions(tools)]
    lines = [
        "# Tools",
        "",
        "You may call one or more functions to assist with the user query.",
        "",
        "You are provided with function signatures within <tools></tools> XML tags:",
        "<tools>",
        *listed,
        "</tools>",
        "",
        "For each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:",
        "<tool_call>",
        '{"name": <function-name>, "arguments": <args-json-object>}',
        "</tool_call>",
    ]
    return "\n".join([system, "", *lines] if system.strip() else lines)


def hermes_text(content: str, calls: Sequence[ToolCall]) -> str:
    """A reply with tool calls, as Hermes and Qwen models write it."""
    blocks = [
        f'<tool_call>\n{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": '
        f"{call.arguments}}}\n</tool_call>"
        for call in calls
    ]
    return "\n".join([content, *blocks] if content else blocks)
