"""Tools: read a model's calls of them, tell models of them, and hold replies to JSON schemas."""

from longmem.tools.calls import ToolCall
from longmem.tools.constraint import schema_processor
from longmem.tools.definitions import tool_definitions, tool_names
from longmem.tools.prompt import hermes_system_prompt
from longmem.tools.reply import reply_constraint
from longmem.tools.splitter import ToolCallSplitter, parse_tool_calls

__all__ = [
    "ToolCall",
    "ToolCallSplitter",
    "hermes_system_prompt",
    "parse_tool_calls",
    "reply_constraint",
    "schema_processor",
    "tool_definitions",
    "tool_names",
]
