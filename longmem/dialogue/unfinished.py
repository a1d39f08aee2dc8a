"""Sessions made for an exchange that is not through yet: what a crash leaves of them is removed.

They are noted in the store as long as the exchange runs. A fork that nobody learned the id of would
otherwise keep what its owner may want erased.
"""

from __future__ import annotations

from contextlib import suppress

from longmem.errors import SessionInUseError, SessionNotFoundError, StoreReadOnlyError
from longmem.store import Store

NAMESPACE = "longmem.unfinished"


def expect(store: Store, session: str, n_turns: int) -> None:
    """A session of this id and so many turns is about to be made; `note` it when it is there."""
    store.records.put(NAMESPACE, session, n_turns)


def note(store: Store, session: str, n_turns: int) -> None:
    """Stored session `session`, of `n_turns` turns, goes unless an exchange is stored in it."""
    store.records.put(NAMESPACE, session, n_turns, session=session)


def finished(store: Store, session: str) -> None:
    """It stays."""
    store.records.delete(NAMESPACE, session)


def remove(store: Store, session: str) -> None:
    """It goes, if it was made at all.

    Raises:
        SessionInUseError: it is open; it goes with the next sweep.
    """
    with suppress(SessionNotFoundError):
        store.delete(session)
    finished(store, session)


def sweep(store: Store) -> list[str]:
    """Remove the sessions whose exchange a crash ended; returns their ids in the store. Those that are
    open are left alone: their exchange is under way."""
    gone = []
    with suppress(StoreReadOnlyError):
        for session, n_turns in store.records.list(NAMESPACE):
            with suppress(SessionInUseError):
                if _turns(store, session) > n_turns:
                    finished(store, session)
                else:
                    remove(store, session)
                    gone.append(session)
    return gone


def _turns(store: Store, session: str) -> int:
    try:
        return store.info(session).n_turns
    except SessionNotFoundError:
        return 0
