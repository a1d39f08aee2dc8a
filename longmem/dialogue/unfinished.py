"""Sessions made for an exchange that is not through yet: what a crash leaves of them is removed.

They are noted in the store as long as the exchange runs. A fork that nobody learned the id of would
otherwise keep what its owner may want erased.
"""

from __future__ import annotations

from contextlib import suppress

from longmem.errors import SessionInUseError, SessionNotFoundError, StoreReadOnlyError
from longmem.store import Store

NAMESPACE = "longmem.unfinished"


def note(store: Store, session: str, n_turns: int) -> None:
    """Stored session `session`, of `n_turns` turns, goes unless an exchange is stored in it."""
    store.records.put(NAMESPACE, session, n_turns, session=session)


def finished(store: Store, session: str) -> None:
    """It stays."""
    store.records.delete(NAMESPACE, session)


def sweep(store: Store) -> list[str]:
    """Remove the sessions whose exchange a crash ended; returns their ids in the store. Those that are
    open are left alone: their exchange is under way."""
    gone = []
    with suppress(StoreReadOnlyError):
        for session, n_turns in store.records.list(NAMESPACE):
            with suppress(SessionInUseError, SessionNotFoundError):
                if store.info(session).n_turns > n_turns:
                    finished(store, session)
                else:
                    store.delete(session)
                    gone.append(session)
    return gone
