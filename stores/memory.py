"""A store in RAM: same verbs, same refusals, gone with the process."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self
from weakref import WeakValueDictionary

from longmem.errors import InputError, SessionInUseError, SessionNotFoundError, StoreError
from longmem.store import Problem, Record, SessionHandle, SessionInfo
from longmem.stores.checks import check_id
from longmem.stores.forking import check_head, check_shared
from longmem.stores.memory_handle import Held, InMemoryHandle
from longmem.stores.memory_records import InMemoryRecords
from longmem.stores.memory_usage import Totals
from longmem.stores.quota import Limits
from longmem.stores.rows import to_json


class InMemoryStore:
    """`longmem.store.Store` in RAM, for tests and for conversations nobody needs to keep.

    Args:
        max_bytes, max_owner_bytes: see `longmem.stores.quota.Limits`.
    """

    def __init__(self, *, max_bytes: int | None = None, max_owner_bytes: int | None = None) -> None:
        self.guard = threading.RLock()
        self.totals = Totals(Limits(max_bytes, max_owner_bytes))
        self._sessions: dict[str, Held] = {}
        self._staged: list[Held] = []
        self._handles: WeakValueDictionary[str, InMemoryHandle] = WeakValueDictionary()
        self._records = InMemoryRecords(self.guard, self.find)
        self._closed = False

    @property
    def records(self) -> InMemoryRecords:
        """Namespaced JSON documents."""
        return self._records

    def create(self, info: SessionInfo) -> SessionHandle:
        """Create and claim a session that is not there yet."""
        check_id(info.id)
        with self.guard:
            self._usable(info.id)
            self._unused(info.id)
            fresh = replace(_fresh(info), parent=None, parent_turn=None)
            self._sessions[info.id] = Held(self.totals.enter(fresh))
            return self._claim(self._sessions[info.id])

    def open(self, session_id: str) -> SessionHandle:
        """Claim an existing session for writing."""
        with self.guard:
            self._usable(session_id)
            return self._claim(self.find(session_id))

    def info(self, session_id: str) -> SessionInfo:
        """A session, open or not, as of its last commit."""
        return self.find(session_id).info

    def sessions(self, owner: str | None = None) -> list[SessionInfo]:
        """All sessions (of one owner), the most recently used first."""
        with self.guard:
            newest_first = reversed(self._sessions.values())
            infos = [session.info for session in newest_first]
        infos = [info for info in infos if owner is None or info.owner == owner]
        return sorted(infos, key=lambda info: -info.updated_at)

    def fork(
        self, session_id: str, info: SessionInfo, head: int, *, window: int = 0
    ) -> SessionHandle:
        """Create and claim a session that begins with commits ``1 .. head`` of another."""
        check_id(info.id)
        with self.guard:
            self._usable(info.id)
            self._unused(info.id)
            source = self.find(session_id)
            check_head(source.info, head)
            fresh = replace(
                _fresh(info),
                fingerprint=source.info.fingerprint,
                layout=source.info.layout,
                dtype=source.info.dtype,
                parent=session_id,
                parent_turn=source.point(head).n_turns - 1,
            )
            self._sessions[info.id] = self._begun(source, fresh, head)
            return self._claim(self._sessions[info.id])

    def stage(
        self, handle: SessionHandle, info: SessionInfo, head: int = 0, *, window: int = 0
    ) -> SessionHandle:
        """A hidden stand-in for a claimed session, to be rebuilt under a new `info`."""
        with self.guard:
            source = _own(handle).held
            of = source.info
            check_shared(of, info, head)
            fresh = replace(_fresh(info), id=of.id, parent=of.parent, parent_turn=of.parent_turn)
            staged = self._begun(source, fresh, head, staged=True)
            self._staged.append(staged)
            return InMemoryHandle(self, staged)

    def publish(
        self,
        handle: SessionHandle,
        staged: SessionHandle,
        *,
        heads: Mapping[int, int | None] | None = None,
        records: Sequence[Record] = (),
        forgets: bool = False,
    ) -> None:
        """Let `handle`'s session hold what `staged` holds; closes `staged`."""
        for record in records:
            to_json(record.value)
        with self.guard:
            old, new = _own(handle), _own(staged)
            session, replaced = new.held, old.held
            if not self.is_staged(session) or session.info.id != replaced.info.id:
                raise InputError("publish takes what stage() returned for the same session")
            self._sessions[session.info.id] = session
            self._drop_staged(lambda waiting: waiting is session)
            self.totals.leave(replaced.info)
            session.shared = 0
            self._records.move(session.info.id, heads or {})
            self._records.committed(records, session.info.id, session.info.head)
            old.take_over(session)
            new.close()

    def delete(self, session_id: str) -> None:
        """Delete a session and its records."""
        with self.guard:
            self._usable(session_id)
            self.totals.leave(self.find(session_id).info)
            del self._sessions[session_id]
            for held in self._drop_staged(lambda waiting: waiting.info.id == session_id):
                self.totals.leave(held.info)
            self._records.drop_session(session_id)

    def erase(self, session_id: str) -> None:
        """Delete a session; in RAM nothing is left of it."""
        self.delete(session_id)

    def scrub(self) -> None:
        """Nothing to do: what was deleted is gone."""
        if self._closed:
            raise StoreError("the store is closed; make a new one")

    def sweep(self, now: float | None = None) -> list[str]:
        """Delete the sessions that have expired and are not open; returns their ids."""
        moment = time.time() if now is None else now
        with self.guard:
            over = [info for info in self.sessions() if info.expired(moment)]
            over.sort(key=lambda info: info.expires_at or moment)
            gone = [info.id for info in over if info.id not in self._handles]
            for session_id in gone:
                self.delete(session_id)
        return gone

    def verify(self, session_id: str | None = None) -> list[Problem]:
        """Nothing in RAM can be found damaged: always empty."""
        if session_id is not None:
            self.find(session_id)
        return []

    def close(self) -> None:
        """Close all handles. Closing twice is fine."""
        with self.guard:
            for handle in list(self._handles.values()):
                handle.close()
            self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def find(self, session_id: str) -> Held:
        """The stored session.

        Raises:
            SessionNotFoundError: there is none of that id.
        """
        if session_id not in self._sessions:
            raise SessionNotFoundError(f"the store has no session {session_id!r}")
        return self._sessions[session_id]

    def forget(self, handle: InMemoryHandle) -> None:
        """A handle closes: its claim ends; a stand-in nobody published goes."""
        session = handle.held
        if self._handles.get(session.info.id) is handle:
            del self._handles[session.info.id]
        for held in self._drop_staged(lambda waiting: waiting is session):
            self.totals.leave(held.info)

    def holds(self, session: Held) -> bool:
        """Whether a session is still here: stored, or staged and not dropped."""
        return any(session is held for held in [*self._sessions.values(), *self._staged])

    def is_staged(self, session: Held) -> bool:
        """Whether it is a stand-in that waits to be published."""
        return any(session is waiting for waiting in self._staged)

    def _begun(self, source: Held, fresh: SessionInfo, head: int, *, staged: bool = False) -> Held:
        """A new session that holds the first `head` commits of `source`."""
        entered = self.totals.enter(fresh)
        try:
            return source.beginning(entered, head, self.totals, staged=staged)
        except BaseException:
            self.totals.leave(entered)
            raise

    def _unused(self, session_id: str) -> None:
        if session_id in self._sessions:
            raise SessionInUseError(f"session {session_id!r} exists already; open it")

    def _drop_staged(self, goes: Callable[[Held], bool]) -> list[Held]:
        dropped = [held for held in self._staged if goes(held)]
        self._staged = [held for held in self._staged if not goes(held)]
        return dropped

    def _claim(self, session: Held) -> InMemoryHandle:
        handle = InMemoryHandle(self, session)
        self._handles[session.info.id] = handle
        return handle

    def _usable(self, session_id: str) -> None:
        if self._closed:
            raise StoreError("the store is closed; make a new one")
        if session_id in self._handles:
            raise SessionInUseError(
                f"session {session_id!r} is open in this process; close it first"
            )


def _own(handle: SessionHandle) -> InMemoryHandle:
    if not isinstance(handle, InMemoryHandle):
        raise InputError(f"{type(handle).__name__} is no handle of this store")
    return handle


def _fresh(info: SessionInfo) -> SessionInfo:
    """`info` as its JSON form would come back, with the counts of an empty session."""
    return replace(
        info,
        metadata=json.loads(to_json(info.metadata)),
        fingerprint=json.loads(to_json(info.fingerprint)),
        head=0,
        n_turns=0,
        n_tokens=0,
        bytes=0,
        charged=0,
    )
