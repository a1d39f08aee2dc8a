"""Replies that an equal request gets again: found by its key, or by what the last exchange read."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from longmem.dialogue.chain import chain
from longmem.dialogue.events import Outcome
from longmem.dialogue.message import turn_message
from longmem.errors import InputError
from longmem.types import Reply, Timings, Turn, Usage

if TYPE_CHECKING:
    from longmem.dialogue.request import Request
    from longmem.session import Session

KEYS = "longmem.idempotency"
"""Name space of the records that tell which turn answered the request of a key."""
BRANCHES = "longmem.branches"
"""Name space of the records that tell which fork answered messages that diverged from a session."""
_CHUNK = 64
"""Turns read at once."""


def key_of(request: Request) -> str | None:
    """The record's key of a request with an idempotency key; owners have keys of their own."""
    if request.idempotency_key is None:
        return None
    return f"{request.owner or ''}:{_hash(request.idempotency_key)}"


def branch_key(session: str, input: bytes) -> str:
    """The record's key of an exchange that left stored session `session` and ends with the messages
    of chain value `input`."""
    return f"{_hash(session)}:{input.hex()}"


def input_digest(request: Request) -> str:
    """Tells whether two requests of one key are the same."""
    place = f"{request.session}\n{request.scope}\n{request.at}"
    return _hash(place, chain(request.messages)[-1].hex())


def pointer(
    session: str | None, turn: int | None, message_id: str, forked_from: str | None
) -> dict[str, Any]:
    """Where a reply stands.

    Args:
        session: id in the store of the session that holds it.
        turn: where to look for it first.
        message_id: of its message.
        forked_from: public id of the session that this one was forked from for it.
    """
    return {"session": session, "turn": turn, "id": message_id, "forked_from": forked_from}


def turn_of(session: Session, found: dict[str, Any]) -> Turn | None:
    """The turn a record leads to. Its index may have changed since: earlier turns were forgotten."""
    for stop in range(found["turn"] + 1, 0, -_CHUNK):
        for turn in reversed(session.turns(max(0, stop - _CHUNK), stop)):
            if turn.extra.get("id") == found["id"]:
                return turn
    return None


def check_same(found: dict[str, Any], request: Request) -> None:
    """Refuse a key that was used for something else.

    Raises:
        InputError: it was.
    """
    if found["request"] != input_digest(request):
        raise InputError(
            f"idempotency key {request.idempotency_key!r} belongs to an earlier request with other "
            "messages; give every new request a key of its own"
        )


def usage_details(usage: Usage) -> dict[str, Any]:
    """A reply's counts, as they are kept with its turn."""
    return asdict(usage)


def repeat(turn: Turn, session: str, forked_from: str | None) -> Outcome:
    """The outcome of the exchange that `turn`, an assistant's, ended.

    Args:
        session: public id of the session it stands in.
        forked_from: of the session this one was made from for it.
    """
    message = turn_message(turn)
    usage = Usage(**turn.extra.get("usage", {"read": 0, "generated": 0, "from_memory": 0}))
    ended = turn.extra.get("finish_reason", "eos")
    reply = Reply(turn.text, message.reasoning, ended, usage, (), Timings(), turn.index)
    return Outcome(
        session,
        turn.index,
        message,
        reply,
        finish_reason(reply, bool(message.tool_calls)),
        repeated=True,
        forked_from=forked_from,
        read=0,
        from_memory=usage.read + usage.from_memory,
    )


def finish_reason(reply: Reply, calls: bool) -> Any:
    """Why a reply ended, as callers of APIs put it."""
    if calls:
        return "tool_calls"
    return "length" if reply.finish_reason == "length" else "stop"


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
