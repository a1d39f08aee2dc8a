"""Every owner has a name space of session ids of its own.

A session ``chat`` of owner ``alice`` is stored as ``alice:chat``, so that nobody can meet, or even
notice, the session of the same name of another.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from longmem.errors import InputError, LongMemError

_OWNER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MOST_CHARACTERS = 180
"""Of an id that go into its forks' names; with owner and random end they stay a valid id."""
_FORK = re.compile(r"~[0-9a-f]{8}$")


def session_id(owner: str | None, id: str) -> str:
    """The id in the store of the session that `owner` calls `id`.

    Args:
        owner: None for sessions without one. An id of theirs that holds a colon is stored with one
            in front, so that no owner has it.
        id: the public id.

    Raises:
        InputError: the owner's name is not made of 1 to 64 letters, digits, "-" and "_".
    """
    if owner is None:
        return f":{id}" if ":" in id else id
    if not _OWNER.fullmatch(owner):
        raise InputError(
            f"owner {owner!r} is not made of 1 to 64 letters, digits, '-' and '_'; rename it"
        )
    return f"{owner}:{id}"


def public_id(owner: str | None, stored_id: str) -> str:
    """What `owner` calls the session stored as `stored_id`: `session_id` the other way round."""
    return stored_id.removeprefix(":" if owner is None else f"{owner}:")


def fork_name(id: str) -> str:
    """A new public id for a fork of `id`: ``chat~1f2e3d4c``, also for a fork of a fork."""
    return f"{_FORK.sub('', id)[:_MOST_CHARACTERS]}~{secrets.token_hex(4)}"


@contextmanager
def public_names(owner: str | None, *stored_ids: str) -> Iterator[None]:
    """Inside the block, messages of errors name these sessions as their owner does."""
    try:
        yield
    except LongMemError as error:
        text = str(error)
        for stored_id in stored_ids:
            text = text.replace(repr(stored_id), repr(public_id(owner, stored_id)))
        if text != str(error):
            error.args = (text,)
        raise
