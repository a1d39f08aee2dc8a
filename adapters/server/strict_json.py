"""JSON of strangers: what the standard allows, and no more of it than the server can bear.

A list of millions of empty lists is a small text, and gigabytes of objects that hold up every other
request while they are made. So a body is counted before anything is made of it.
"""

from __future__ import annotations

import json
import re
from typing import Any

from fastapi.exceptions import HTTPException

_DEEPEST = 100
"""Levels of nesting; what is deeper only serves to exhaust the stack of whoever reads it."""
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]|[,:]', re.DOTALL)
"""A string as a whole (its end may be missing: one that had to be tried again at every quote would take
for ever), or a mark between values."""
_PER_VALUE = 5
"""Tokens that come with a value at most: a name, a colon, itself, its end, a comma."""


def strict_json(body: bytes, most: int) -> Any:
    """A JSON document.

    Args:
        body: its text.
        most: values it may hold, those inside lists and objects each.

    Raises:
        json.JSONDecodeError: it is none, holds NaN or infinity, half of a surrogate pair or a number
            of thousands of digits, or is nested more than a hundred levels deep.
        HTTPException: 413, it holds more values; the framework lets no other error through here.
    """
    _check_size(body, most)
    try:
        text = body.decode("utf-8")
        value = json.loads(text, parse_constant=_refuse)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError:
        raise
    except UnicodeError:
        raise json.JSONDecodeError("not UTF-8, or half of a surrogate pair", "", 0) from None
    except ValueError as error:
        raise json.JSONDecodeError(str(error), "", 0) from None
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _check_size(body: bytes, most: int) -> None:
    """Count levels and values, without making any; one by one, so that other threads get on.

    Each value but the first of a list or object follows a comma, the first follows its beginning.
    """
    depth, values = 0, 1
    for tokens, found in enumerate(_TOKEN.finditer(body), 1):
        mark = body[found.start()]
        if mark in b"[{":
            depth, values = depth + 1, values + 1
            if depth > _DEEPEST:
                raise json.JSONDecodeError(f"more than {_DEEPEST} levels deep", "", 0)
        elif mark in b"]}":
            depth -= 1
        elif mark == ord(","):
            values += 1
        if values > most + 1 or tokens > _PER_VALUE * (most + 1):
            raise HTTPException(
                413, f"the body has more than {most:,} JSON values; send less, in several turns"
            )
