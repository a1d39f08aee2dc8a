"""The contract between a session and the place where it lives.

Data flows one way: a session hands a `Commit` to its `SessionHandle`; when `commit` returns, the
exchange is durable. A store knows nothing of attention: K/V rows are addressed by layer and
absolute token position, everything else is named tensors it keeps byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from longmem.records import Records
from longmem.session_handle import SessionHandle
from longmem.stored import (
    Commit,
    CommitPoint,
    Problem,
    Record,
    SessionInfo,
    Snapshot,
    Span,
    TurnRecord,
)

__all__ = [
    "Commit",
    "CommitPoint",
    "Problem",
    "Record",
    "Records",
    "SessionHandle",
    "SessionInfo",
    "Snapshot",
    "Span",
    "Store",
    "TurnRecord",
]


@runtime_checkable
class Store(Protocol):
    """Where sessions live. `longmem.stores.conformance` checks an implementation."""

    @property
    def records(self) -> Records:
        """Namespaced JSON documents."""

    def create(self, info: SessionInfo) -> SessionHandle:
        """Create and claim a session that is not there yet.

        Raises:
            SessionInUseError: a session of that id exists already.
        """

    def open(self, session_id: str) -> SessionHandle:
        """Claim an existing session for writing (or reading, on a read-only store).

        Raises:
            SessionNotFoundError: there is none of that id.
            SessionInUseError: it is open in this process.
        """

    def info(self, session_id: str) -> SessionInfo:
        """A session, open or not, as of its last commit.

        Raises:
            SessionNotFoundError: there is none of that id.
        """

    def sessions(self, owner: str | None = None) -> list[SessionInfo]:
        """All sessions (of one owner), the most recently used first."""

    def fork(
        self, session_id: str, info: SessionInfo, head: int, *, window: int = 0
    ) -> SessionHandle:
        """Create and claim a session that begins with commits ``1 .. head`` of another.

        Files are shared, not copied; each session that shares a file is charged with all of it.
        The two go on independently: each may be rolled back, deleted or erased while the other
        lives. The other may be open. Its records stay its own.

        Args:
            session_id: the session to begin with.
            info: id, owner, metadata, times and limits of the new one. Fingerprint, layout and
                dtype are those of the other; `parent` and `parent_turn` are set.
            head: how many of its commits.
            window: as of `SessionHandle.rollback`.

        Raises:
            SessionNotFoundError: there is no session `session_id`.
            SessionInUseError: a session of the new id exists already.
            InputError: `head` is none of the session's.
            StoreFullError: it would exceed a limit of bytes; nothing was written.
            StoreError: as of `SessionHandle.rollback`.
        """

    def stage(
        self, handle: SessionHandle, info: SessionInfo, head: int = 0, *, window: int = 0
    ) -> SessionHandle:
        """A hidden stand-in for a claimed session, to be rebuilt under a new `info`.

        It keeps the session's id, begins with its first `head` commits, takes no records, and is
        invisible to `sessions`. Unless `publish`ed it is dropped when it is closed, at the latest
        on the next opening of the store.

        Raises:
            InputError: `head` is none of the session's, or the layout or dtype of `info` is
                another than that of the commits to share.
            StoreError: as of `SessionHandle.rollback`.
        """

    def publish(
        self,
        handle: SessionHandle,
        staged: SessionHandle,
        *,
        heads: Mapping[int, int | None] | None = None,
        records: Sequence[Record] = (),
        forgets: bool = False,
    ) -> None:
        """In one transaction let `handle`'s session hold what `staged` holds; closes `staged`.

        `handle` stays valid, with the new info, head and files; its old files are unlinked, the
        session's records stay.

        Args:
            heads: for records tied to a commit, the number it has now; None: they go with it.
                Those of commits that are not in it stay tied to the number they had.
            records: documents to store with it, tied to the last commit of `staged`.
            forgets: what is replaced is to leave no trace, and the caller goes on to `scrub`. If that
                does not come about, the next opening of the store for writing does it.

        Raises:
            InputError: `staged` does not come from `stage` for the same session, or a record's
                value is not JSON-able; nothing was changed.
        """

    def delete(self, session_id: str) -> None:
        """Delete a session, its files and its records.

        Single words may stay behind in the full-text index until it is next cleaned: see `erase`.

        Raises:
            SessionNotFoundError: there is none of that id.
            SessionInUseError: it is open in this process.
        """

    def erase(self, session_id: str) -> None:
        """Delete a session, and leave nothing of it to be found: `delete`, then `scrub`.

        What sessions forked from it share stays theirs: erase them too. If a crash comes in between,
        the next opening of the store for writing scrubs it.

        Raises:
            SessionNotFoundError, SessionInUseError: as `delete`.
            StoreError: it was deleted, but not all traces could be removed; the message says what
                to do.
        """

    def scrub(self) -> None:
        """Remove every trace of what was deleted, rolled back or replaced before.

        That is shared files that hold more than anybody needs, the full-text index, free pages and
        the write-ahead log. Takes a time that grows with the whole store.

        Raises:
            StoreReadOnlyError: the store is open read-only.
            StoreError: something stands in the way; the message says what.
        """

    def sweep(self, now: float | None = None) -> list[str]:
        """Delete the sessions that have expired and are not open in this process; returns their ids,
        the longest over first.

        Args:
            now: Unix seconds; default the present.
        """

    def verify(self, session_id: str | None = None) -> list[Problem]:
        """Read everything (of one session) and return what is wrong; empty means sound."""

    def close(self) -> None:
        """Release locks and connections. Closing twice is fine."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
