"""Fork a stored session, and tell what going back needs of it; no model takes part."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from longmem.boundary import point_behind
from longmem.errors import InputError
from longmem.opening import check_id
from longmem.store import CommitPoint, SessionHandle, Store


def fork_stored(
    store: Store,
    handle: SessionHandle,
    id: str,
    *,
    at: int | None = None,
    owner: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    checked: bool = False,
) -> SessionHandle:
    """The new session, claimed; see `longmem.Session.fork` for arguments and errors.

    Args:
        store: where both live.
        handle: the session to fork.
        checked: look before that what the new session will read is there; else its opening tells.
    """
    check_id(id)
    while True:
        point = _point(handle, at)
        try:
            return _fork(store, handle, id, point, owner, metadata, checked)
        except InputError:
            if _point(handle, at).head >= point.head:  # it was not rolled back meanwhile
                raise


def _point(handle: SessionHandle, at: int | None) -> CommitPoint:
    """The commit to end with."""
    if at is None:
        return handle.point(handle.info.n_turns)
    return point_behind(handle, at, "fork")


def _fork(
    store: Store,
    handle: SessionHandle,
    id: str,
    point: CommitPoint,
    owner: str | None,
    metadata: Mapping[str, Any] | None,
    checked: bool,
) -> SessionHandle:
    info, now = handle.info, time.time()
    told = replace(
        info,
        id=id,
        owner=info.owner if owner is None else owner,
        metadata=info.metadata if metadata is None else metadata,
        created_at=now,
        updated_at=now,
    )
    window = window_at(store, handle, point) if checked else 0
    return store.fork(info.id, told, point.head, window=window)


def window_at(store: Store, handle: SessionHandle, point: CommitPoint) -> int:
    """Tokens before `point` that stood in a local window or were pending: a session that goes back
    there reads their keys and values."""
    staged = store.stage(handle, handle.info, point.head)
    try:
        snapshot = staged.snapshot(lazy=("",))  # the state alone, without any blocks
    finally:
        staged.close()
    state = snapshot.state if snapshot is not None else {}
    first = [int(place[0]) for name, place in state.items() if name.startswith("place.")]
    return point.n_tokens - min(first, default=point.n_tokens)
