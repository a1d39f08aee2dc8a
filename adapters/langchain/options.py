"""Keyword arguments of a call, checked and turned into a dialogue's request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.utils.function_calling import convert_to_json_schema

from longmem.adapters.langchain.messages import as_functions, as_tool_choice
from longmem.dialogue import Message
from longmem.dialogue.chain import chain
from longmem.errors import InputError
from longmem.sampling import Sampling

_SAMPLING = {
    "temperature": "temperature",
    "max_tokens": "max_new_tokens",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "repetition_penalty",
    "seed": "seed",
}
_ANSWER = ("tools", "tool_choice", "response_format")
_PLACE = ("session", "memory", "scope", "diverge", "on_system", "owner", "idempotency_key")
_IGNORED = ("stream", "strict", "parallel_tool_calls")
"""Hints that change nothing here: LangChain's own, and OpenAI's about how tools are called."""
_MAPS_OF_SCHEMAS = ("properties", "$defs", "definitions", "patternProperties")
_LISTS_OF_SCHEMAS = ("anyOf", "oneOf", "prefixItems")
KNOWN = (*_SAMPLING, *_ANSWER, *_PLACE, *_IGNORED, "model", "surroundings")


def check_options(options: Mapping[str, Any], model_name: str) -> None:
    """Refuse what a call may not say.

    Raises:
        InputError: an option that there is not, or another model than the one that is loaded.
    """
    unknown = [name for name in options if name not in KNOWN]
    if unknown:
        raise InputError(
            f"ChatLongMem knows no option {' or '.join(map(repr, unknown))}; there are "
            f"{', '.join(name for name in KNOWN if name not in (*_IGNORED, 'surroundings'))}"
        )
    if options.get("model") not in (None, model_name):
        raise InputError(
            f"this ChatLongMem serves {model_name!r}, not {options['model']!r}; make another for it"
        )


def sampling_of(fields: Mapping[str, Any], stop: Sequence[str] | None) -> Sampling:
    """How to decode; None leaves an option at its default."""
    chosen = {
        ours: fields[name] for name, ours in _SAMPLING.items() if fields.get(name) is not None
    }
    return Sampling(**chosen, stop=tuple(stop or ()))


def answer_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """`tools`, `tool_choice` and `schema` of a request."""
    tools = as_functions(options.get("tools") or ())
    choice = as_tool_choice(options.get("tool_choice"), [tool["name"] for tool in tools])
    schema = schema_of(options.get("response_format"))
    return {"tools": tools, "tool_choice": choice, "schema": schema}


def schema_of(response_format: Any) -> Any:
    """The JSON schema that OpenAI's ``response_format``, a schema or a class asks for; "json" for
    any object, None for free text.

    Its objects take no other properties than those it names, unless it says so: a model that may
    make up names would go on doing so.

    Raises:
        InputError: it is none of these.
    """
    if response_format is None or response_format == {"type": "text"}:
        return None
    if response_format == {"type": "json_object"}:
        return "json"
    if isinstance(response_format, Mapping) and response_format.get("type") == "json_schema":
        return closed(response_format["json_schema"]["schema"])
    try:
        return closed(convert_to_json_schema(response_format))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"response_format {response_format!r} is no schema: {error}; give a pydantic class, a "
            'TypedDict, a JSON schema with a title, or {"type": "json_object"}'
        ) from error


def closed(schema: Any) -> Any:
    """A copy in which each object that names its properties, and says nothing of others, has no
    others. Parts of an "allOf" stay as they are: each would exclude what the next one names."""
    if not isinstance(schema, Mapping):
        return schema
    inside = dict(schema)
    for keyword in _MAPS_OF_SCHEMAS:
        if isinstance(parts := schema.get(keyword), Mapping):
            inside[keyword] = {name: closed(part) for name, part in parts.items()}
    for keyword in _LISTS_OF_SCHEMAS:
        if isinstance(options := schema.get(keyword), list):
            inside[keyword] = [closed(option) for option in options]
    for keyword in ("items", "additionalProperties"):
        if keyword in schema:
            inside[keyword] = closed(schema[keyword])
    if isinstance(schema.get("properties"), Mapping) and "allOf" not in schema:
        inside.setdefault("additionalProperties", False)
    return inside


def task_key(task: str, messages: Sequence[Message], *further: Any) -> str:
    """The key of one question a graph's task asks: the same when the task is run again."""
    asked = json.dumps([chain(messages)[-1].hex(), *further], sort_keys=True, default=str)
    return f"{task}:{hashlib.sha256(asked.encode()).hexdigest()[:16]}"
