"""What one reply is held to: a JSON schema, a call of a tool, or either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from longmem.errors import InputError
from longmem.tools.constraint import GrammarProcessor, grammar_processor
from longmem.tools.definitions import tool_definitions
from longmem.tools.grammar import call_rule, json_rule, lark

if TYPE_CHECKING:
    from longmem.engine import Engine


def reply_constraint(
    engine: Engine,
    *,
    schema: Mapping[str, Any] | str | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
    tool_choice: str = "auto",
) -> GrammarProcessor | None:
    """A logits processor for one reply, or None if the reply is free.

    Args:
        engine: the model that will reply.
        schema: a JSON schema for the whole reply, or "json" for any object.
        tools: definitions of the tools that the session's first turn tells of.
        tool_choice: "auto": the reply may call a tool; "none"; "required": it is one call; the name
            of a tool: it is one call of that. Where a call and a schema are both possible, the
            reply is one of them.

    Raises:
        InputError: the schema is none, or cannot be enforced; there is no such tool, or no tools.
        ImportError: llguidance is not installed.
    """
    calls = [] if tool_choice == "none" else _callable(tools, tool_choice)
    if tool_choice not in ("auto", "none"):
        schema = None
    elif schema is None:
        return None
    rules = [] if schema is None else [json_rule(schema)]
    if calls:
        rules.append(call_rule(engine.chat.call_form, calls, _tokens(engine)))
    return grammar_processor(
        engine.tokenizer,
        lark(*rules),
        _vocabulary(engine),
        engine.chat.eos_ids,
        engine.chat.tags[1] if engine.chat.opens_reasoning else "",
    )


def _callable(tools: Sequence[Mapping[str, Any]], choice: str) -> list[dict[str, Any]]:
    """The tools that the reply may call."""
    definitions = tool_definitions(tools)
    if choice in ("auto", "required"):
        if choice == "required" and not definitions:
            raise InputError('tool_choice is "required", but there are no tools; give some')
        return definitions
    named = [tool for tool in definitions if tool["function"]["name"] == choice]
    if not named:
        raise InputError(
            f"tool_choice is {choice!r}, but there is no such tool; choose one of "
            f"{', '.join(tool['function']['name'] for tool in definitions) or 'none'}"
        )
    return named


def _tokens(engine: Engine) -> dict[str, int]:
    """Markup of calls that is one token of the model."""
    added = engine.tokenizer.added_tokens_decoder.items()
    return {str(t): int(i) for i, t in added if str(t) in engine.chat.tool_markers}


def _vocabulary(engine: Engine) -> int:
    """Rows of the model's logits."""
    head = engine.model.get_output_embeddings() or engine.model.get_input_embeddings()
    return int(head.weight.shape[0])
