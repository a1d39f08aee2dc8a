"""Opening a session: create it, resume it where it stood, or read its turns again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from longmem.errors import CorruptDataError, InputError, SessionNotFoundError
from longmem.fingerprint import check
from longmem.ledger import Ledger
from longmem.memory import SessionMemory
from longmem.rebuild import rebuild as rebuild_session
from longmem.store import SessionHandle, SessionInfo, Store

if TYPE_CHECKING:
    from longmem.engine import Engine, Progress

_MOST_CHARACTERS = 256


@dataclass(frozen=True, eq=False)
class Opened:
    """What a session starts from. `memory` is None before its first turn; `created` tells that the
    store did not have it."""

    ledger: Ledger
    memory: SessionMemory | None = None
    rng: Tensor | None = None
    created: bool = False


def open_session(
    engine: Engine,
    id: str,
    store: Store | None,
    owner: str | None,
    metadata: Mapping[str, Any],
    *,
    create: bool = True,
    rebuild: bool = False,
    progress: Progress | None = None,
) -> Opened:
    """Create or resume session `id`; see `longmem.Session` for arguments and errors."""
    check_id(id)
    if store is None:
        return Opened(Ledger(None))
    handle, created = _claim(engine, id, store, owner, metadata, create)
    try:
        if handle.info.n_turns and not rebuild:
            check(handle.info.fingerprint, engine.fingerprint, id)
        handle.limit(max_bytes=engine.config.max_bytes, ttl=engine.config.ttl)
        if handle.info.n_turns and rebuild:
            rebuild_session(engine, store, handle, session_info(engine, handle.info), progress)
        elif not handle.info.n_turns and not created:
            _adopt(engine, store, handle)
        return replace(resume(engine, handle), created=created)
    except BaseException:
        handle.close()
        raise


def check_id(id: str) -> None:
    """Refuse ids that a path, a URL or a log line could take for something else.

    Raises:
        InputError: says what is wrong with it.
    """
    if not isinstance(id, str) or not id.strip():
        raise InputError(f"a session id is a non-empty string, not {id!r}")
    if len(id) > _MOST_CHARACTERS:
        raise InputError(
            f"session id of {len(id)} characters; at most {_MOST_CHARACTERS} are allowed"
        )
    bad = sorted({c for c in id if c in "/\\" or not c.isprintable()})
    if bad or id in (".", ".."):
        raise InputError(
            f"session id {id!r} holds path or control characters; use letters, digits, '-', '_', "
            "'.', ':' or '@'"
        )


def session_info(engine: Engine, base: SessionInfo) -> SessionInfo:
    """`base` as this engine would write it: fingerprint, layout and dtype of its model."""
    return replace(
        base,
        fingerprint=dict(engine.fingerprint),
        layout=tuple((spec.kv_heads, spec.dim) for spec in engine.info.layers),
        dtype=str(engine.info.layers[0].dtype).removeprefix("torch."),
    )


def _claim(
    engine: Engine,
    id: str,
    store: Store,
    owner: str | None,
    metadata: Mapping[str, Any],
    create: bool,
) -> tuple[SessionHandle, bool]:
    """The claimed session, and whether it was created for that."""
    try:
        handle = store.open(id)
    except SessionNotFoundError:
        if not create:
            raise
        now = time.time()
        empty = SessionInfo(id, owner, metadata, {}, (), "", now, now)
        return store.create(session_info(engine, empty)), True
    if owner is not None and handle.info.owner != owner:
        handle.close()
        raise SessionNotFoundError(f"owner {owner!r} has no session {id!r} in this store")
    return handle, False


def _adopt(engine: Engine, store: Store, handle: SessionHandle) -> None:
    """Give a session without turns to this engine, if another one created it."""
    info = session_info(engine, handle.info)
    if info != handle.info:
        store.publish(handle, store.stage(handle, info))


def resume(engine: Engine, handle: SessionHandle) -> Opened:
    """Load the snapshot of a claimed session; no token is read again.

    Raises:
        CorruptDataError: it cannot be read, or does not fit the turns.
        StoreError: rows of the window were dropped when files were merged.
    """
    snapshot = handle.snapshot(lazy=SessionMemory.LAZY)
    ledger = Ledger(handle)
    if snapshot is None:
        return Opened(ledger)
    if snapshot.n_tokens != ledger.n_tokens or snapshot.n_turns != ledger.n_turns:
        raise CorruptDataError(
            f"session {handle.info.id!r}: its snapshot holds {snapshot.n_tokens} tokens, its turns "
            f"{ledger.n_tokens}; open it with rebuild=True"
        )
    state, blocks = dict(snapshot.state), dict(snapshot.blocks)
    rng = state.pop("rng", None)
    memory = engine.new_memory(int(state["n_init"]), journal=True)
    memory.restore(snapshot.n_tokens, blocks, state, handle, snapshot.lazy)
    return Opened(ledger, memory, rng)
