"""Grammars in llguidance's Lark dialect: a JSON value, or a call of a tool, as a whole reply."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from longmem.errors import InputError

NAME_SLOT = "qznamexzq"
ID_SLOT = "qzxIDxzq0"
ARGUMENT_SLOT = "qzargxzq"
"""Words that stand for a call's parts in the text that a chat template writes for it; the arguments
are an object with a text under `ARGUMENT_SLOT`."""
_SLOTS = re.compile(rf'{NAME_SLOT}|{ID_SLOT}|\{{\s*"{ARGUMENT_SLOT}"\s*:\s*"\w*"\s*\}}')
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As templates write JSON. Free white space would let a model write nothing else for ever."""


def json_rule(schema: Mapping[str, Any] | str, *, lenient: bool = False) -> str:
    """A JSON value that is valid under `schema`; "json" stands for any object.

    Args:
        lenient: leave out what cannot be enforced.

    Raises:
        InputError: `schema` is none.
    """
    if schema == "json":
        schema = _ANY_OBJECT
    if not isinstance(schema, Mapping):
        raise InputError(f'a JSON schema is a mapping, or "json" for any object, not {schema!r}')
    style = {**_JSON_STYLE, "lenient": lenient}
    try:
        text = json.dumps({**schema, "x-guidance": style}, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"this JSON schema cannot be written as JSON: {error}") from error
    return f"%json {text}"


def call_rule(form: str, tools: Sequence[Mapping[str, Any]], tokens: Mapping[str, int]) -> str:
    """One call of one of `tools`.

    Args:
        form: what the chat template writes for a call, with slots (`ChatFormat.call_form`).
        tools: their definitions, in the wrapped form.
        tokens: markup that is one token of the model's vocabulary, with its id.
    """
    return " | ".join(f"( {_call(form, tool['function'], tokens)} )" for tool in tools)


def lark(*alternatives: str) -> str:
    """A grammar whose texts are those of any alternative."""
    return "%llguidance {}\nstart: " + " | ".join(alternatives) + "\n"


def _call(form: str, tool: Mapping[str, Any], tokens: Mapping[str, int]) -> str:
    parts, at = [], 0
    for slot in _SLOTS.finditer(form):
        parts += _literal(form[at : slot.start()], tokens)
        if slot[0] == NAME_SLOT:
            parts += _literal(tool["name"], {})
        elif slot[0] == ID_SLOT:
            parts.append("/[a-zA-Z0-9]{9}/")
        else:
            parts.append(json_rule(_closed(tool["parameters"]), lenient=True))
        at = slot.end()
    parts += _literal(form[at:].rstrip(), tokens)
    return " ".join(parts)


def _closed(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Parameters without further ones, unless they say otherwise: functions refuse what they do not
    know, and a model would write made-up keys for ever."""
    if parameters.keys() & {"anyOf", "allOf", "oneOf", "$ref", "patternProperties"}:
        return parameters
    return {"additionalProperties": False, **parameters}


def _literal(text: str, tokens: Mapping[str, int]) -> list[str]:
    """`text` as strings, and its control tokens as token ids."""
    if not text:
        return []
    if not tokens:
        return [json.dumps(text, ensure_ascii=False)]
    pattern = "(" + "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) + ")"
    return [
        f"<[{tokens[part]}]>" if part in tokens else json.dumps(part, ensure_ascii=False)
        for part in re.split(pattern, text)
        if part
    ]
