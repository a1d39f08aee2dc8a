"""A call of a tool, as a model writes it and as callers see it."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ALPHANUMERIC = string.ascii_letters + string.digits
SHORT_ID = 9
"""Characters of a Mistral model's call ids; its templates refuse any other length."""
_NAME = re.compile(r"[^\x00-\x1f\ud800-\udfff]{1,256}")


@dataclass(frozen=True)
class ToolCall:
    """One call of one tool.

    Args:
        id: what the tool's result refers to.
        name: the tool.
        arguments: a JSON object, as text.
    """

    id: str
    name: str
    arguments: str


def new_id(short: bool = False) -> str:
    """A random call id: "call_" and 24 characters, or Mistral's nine."""
    if short:
        return "".join(secrets.choice(ALPHANUMERIC) for _ in range(SHORT_ID))
    return "call_" + secrets.token_hex(12)


def short_id(id: str) -> str:
    """A Mistral model's form of any id: itself if it is one, else nine characters made from it."""
    if len(id) == SHORT_ID and id.isascii() and id.isalnum():
        return id
    number = int.from_bytes(hashlib.sha256(id.encode("utf-8", "replace")).digest()[:8])
    digits = [number // len(ALPHANUMERIC) ** i % len(ALPHANUMERIC) for i in range(SHORT_ID)]
    return "".join(ALPHANUMERIC[digit] for digit in digits)


def as_call(value: Any, *, short: bool = False, strict: bool = False) -> ToolCall | None:
    """The call that a decoded JSON value is, or None.

    Args:
        value: an object with "name" and "arguments" (or "parameters"), perhaps inside "function".
        short: ids are Mistral's; one that the model wrote is kept.
        strict: arguments have to be there.
    """
    if not isinstance(value, Mapping):
        return None
    inner = value.get("function")
    body = inner if isinstance(inner, Mapping) else value
    name = body.get("name")
    key = "arguments" if "arguments" in body else "parameters"
    given = body.get(key)
    arguments = arguments_text({} if given is None and not strict else given)
    if not isinstance(name, str) or not _NAME.fullmatch(name) or arguments is None:
        return None
    written = value.get("id")
    keeps = short and isinstance(written, str) and written.isascii() and written.isalnum()
    return ToolCall(str(written) if keeps else new_id(short), name, arguments)


def arguments_text(value: Any) -> str | None:
    """Arguments as normalised JSON text, or None if they are no JSON object.

    Args:
        value: an object, or text that holds one.
    """
    try:
        if isinstance(value, str):
            value = load_json(value)
        if not isinstance(value, Mapping):
            return None
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        if any("\ud800" <= c <= "\udfff" for c in text):  # half a pair: nothing could encode it
            text = json.dumps(value, allow_nan=False)
        return text
    except (ValueError, TypeError, RecursionError):
        return None


def load_json(text: str) -> Any:
    """A whole JSON text.

    Raises:
        ValueError: it is none (NaN and Infinity are not JSON), or nested too deeply.
    """
    value, end = decode_json(text, 0)
    if text[end:].strip():
        raise ValueError("there is more text behind the JSON value")
    return value


def decode_json(text: str, at: int) -> tuple[Any, int]:
    """The JSON value that starts at `at` or behind white space there, and where it ends.

    Raises:
        ValueError: there is none, or it is nested too deeply.
    """
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    try:
        return _DECODER.raw_decode(text, at)
    except RecursionError as error:
        raise ValueError("the JSON value is nested too deeply") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
