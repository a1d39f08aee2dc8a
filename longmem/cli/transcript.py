"""Transcripts: one JSON object with "role" and "content" per line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from longmem.errors import InputError
from longmem.types import ROLES

if TYPE_CHECKING:
    from longmem import Engine

Line = tuple[int, str, str]
"""(line number from 1, role, text)"""


def parse(data: bytes, name: str) -> list[Line]:
    """All turns of a transcript; blank lines are skipped.

    Args:
        data: the file's bytes, UTF-8.
        name: of the file, for messages.

    Raises:
        InputError: names the first line that is not a turn, or says that there is none.
    """
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    turns = [
        (number, *_turn(line, f"{name}, line {number}"))
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not turns:
        raise InputError(f"{name} holds no turns; nothing was imported")
    return turns


def check(lines: Sequence[Line], name: str, engine: Engine) -> None:
    """Refuse, before anything is read, turns that this engine would refuse.

    Raises:
        InputError: names the first such line.
    """
    previous, most = None, engine.config.max_turn_bytes
    for number, role, text in lines:
        where = f"{name}, line {number}"
        try:
            engine.chat.validate_text(text, role)
            engine.chat.turn_ids(role, text, previous=previous)
        except InputError as error:
            raise _refused(where, str(error)) from None
        if len(text.encode()) > most:
            raise _refused(where, f"longer than max_turn_bytes = {most:,} bytes")
        previous = role


def _turn(line: bytes, where: str) -> tuple[str, str]:
    try:
        entry = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise _refused(where, f"not UTF-8 (byte {error.start + 1} of the line)") from None
    except (ValueError, RecursionError) as error:
        raise _refused(where, f"not JSON ({error})") from None
    if not isinstance(entry, dict):
        raise _refused(where, "not a JSON object")
    role, content = entry.get("role"), entry.get("content")
    if role not in ROLES:
        raise _refused(where, f'"role" is {role!r}; it must be one of {", ".join(ROLES)}')
    if not isinstance(content, str):
        raise _refused(where, '"content" must be a string')
    return role, content


def _refused(where: str, why: str) -> InputError:
    """The error for one bad line."""
    return InputError(f"{where}: {why}. Nothing was imported; mend the line and import again")
