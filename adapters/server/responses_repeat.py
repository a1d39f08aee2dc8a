"""Whether a request was answered before."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from longmem.adapters.server.errors import ApiError
from longmem.adapters.server.responses_head import find_turn
from longmem.adapters.server.responses_store import StoredResponse, StoredResponses

if TYPE_CHECKING:
    from longmem.dialogue import Dialogue

_WITHIN = 3600.0
"""Seconds after which a request that says it is sent again is a new one."""


def find_repeated(
    dialogue: Dialogue,
    owner: str | None,
    request: str,
    conversation: str | None,
    keyed: str | None,
) -> StoredResponse | None:
    """The response to the request that this one repeats, if it does.

    Args:
        request: `request_key` of the request.
        conversation: the conversation it is in; there only the last exchange can be repeated.
        keyed: its `body_digest`, if it came with an idempotency key.

    Raises:
        ApiError: 400, the idempotency key belongs to another request.
    """
    found = StoredResponses(dialogue.pool.store.records, owner).repeated(request)
    if found is None or (turn := find_turn(dialogue, owner, found)) is None:
        return None
    if keyed is not None:
        _check_same(found, keyed)
        return found
    if time.time() - found.made_at > _WITHIN:
        return None
    last = dialogue.info(owner, found.session).n_turns - 1
    return found if conversation is None or turn == last else None


def _check_same(found: StoredResponse, said: str) -> None:
    if found.said != said:
        raise ApiError(
            400,
            "idempotency_key_reused",
            "this Idempotency-Key belongs to an earlier request with another input, at another place "
            "or with other parameters; give every new request a key of its own",
            "idempotency-key",
        )
