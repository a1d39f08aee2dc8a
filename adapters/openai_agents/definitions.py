"""The SDK's tools, handoffs and settings as a dialogue takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agents import FunctionTool, Handoff, ModelSettings, Tool
from agents.agent_output import AgentOutputSchemaBase
from agents.exceptions import UserError

from longmem.adapters.sampling import sampling_of
from longmem.sampling import Sampling

PROMPT_CACHE_KEY = "prompt_cache_key"


def tool_definitions(
    tools: Sequence[Tool], handoffs: Sequence[Handoff[Any]]
) -> list[dict[str, Any]]:
    """Functions and handoffs as definitions ``{"name", "description", "parameters"}``.

    Raises:
        UserError: a tool runs on OpenAI's servers, or in another form than a function.
    """
    return [*map(_function, tools), *map(_handoff, handoffs)]


def tool_choice_of(settings: ModelSettings) -> str:
    """ "auto", "none", "required" or the name of a function.

    Raises:
        UserError: it is a tool of an MCP server that OpenAI would call.
    """
    choice = settings.tool_choice
    if choice is None or isinstance(choice, str):
        return choice or "auto"
    raise UserError(
        f"tool_choice {choice!r} names a hosted tool, which longmem does not have; use MCP servers "
        "through Agent(mcp_servers=...), whose tools are functions"
    )


def schema_of(output: AgentOutputSchemaBase | None) -> dict[str, Any] | None:
    """The JSON schema of an agent's output; None for plain text."""
    return None if output is None or output.is_plain_text() else output.json_schema()


def sampling_for(base: Sampling, settings: ModelSettings) -> Sampling:
    """`base` with what the settings ask for. `extra_args` may hold fields of `Sampling`: seed, stop
    ... What only tunes other models (verbosity, truncation, penalties ...) is left out.

    Raises:
        ConfigError: a value is out of range, or extra_args holds something else.
    """
    extra = {k: v for k, v in (settings.extra_args or {}).items() if k != PROMPT_CACHE_KEY}
    named = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_new_tokens": settings.max_tokens,
    }
    return sampling_of(base, **(extra | {k: v for k, v in named.items() if v is not None}))


def _function(tool: Tool) -> dict[str, Any]:
    if not isinstance(tool, FunctionTool):
        raise UserError(
            f"the tool {tool.name!r} ({type(tool).__name__}) runs on OpenAI's servers or takes more "
            "than a function call, and longmem has functions only; use a function_tool that does the "
            "same"
        )
    if tool.defer_loading:
        raise UserError(
            f"the tool {tool.name!r} is loaded by OpenAI's tool search (defer_loading=True), which "
            "longmem does not have; leave defer_loading out"
        )
    return _definition(tool.name, tool.description, tool.params_json_schema)


def _handoff(handoff: Handoff[Any]) -> dict[str, Any]:
    return _definition(handoff.tool_name, handoff.tool_description, handoff.input_json_schema)


def _definition(name: str, description: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "description": description, "parameters": parameters}
