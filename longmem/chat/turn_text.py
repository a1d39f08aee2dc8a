"""What may be the text of a turn."""

from __future__ import annotations

import re

from longmem.errors import InputError
from longmem.types import ROLES

_FORBIDDEN = re.compile("[\x00\ud800-\udfff]")


def validate_text(text: str, role: str) -> None:
    """Refuse what cannot be a turn, before anything is read or stored.

    System, user and assistant turns need some text; a tool may return nothing. (A model's own empty
    reply is no input and is kept.)

    Raises:
        InputError: unknown role, no text, a NUL character or half of a surrogate pair.
    """
    check_role(role)
    if not isinstance(text, str):
        raise InputError(f"the {role} turn is of type {type(text).__name__}; give a str")
    if role != "tool" and not text.strip():
        raise InputError(f"the {role} turn is empty or only white space; leave it out or write one")
    check_characters(text, role)


def check_role(role: str) -> None:
    """Raise InputError for a role no chat has."""
    if role not in ROLES:
        raise InputError(f"unknown role {role!r}; use one of {', '.join(ROLES)}")


def check_characters(text: str, role: str) -> None:
    """Raise InputError for characters that tokenizers or databases cannot carry."""
    found = _FORBIDDEN.search(text)
    if found is None:
        return
    what = "a NUL character" if found[0] == "\x00" else "half of a surrogate pair"
    raise InputError(
        f"the {role} turn holds {what} at character {found.start()}; take it out, for instance "
        "with text.replace('\\x00', '') or text.encode('utf-8', 'replace').decode()"
    )
