"""The contract between a session and the place where it lives.

Data flows one way: a session hands a `Commit` to its `SessionHandle`; when `commit` returns, the
exchange is durable. A store knows nothing of attention: K/V rows are addressed by layer and
absolute token position, everything else is named tensors it keeps byte for byte.

Shapes: T tokens of the commit, H_kv key/value heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from torch import Tensor

from longmem.stored import Commit, Problem, SessionInfo, Snapshot, Span, TurnRecord

__all__ = [
    "Commit",
    "Problem",
    "Records",
    "SessionHandle",
    "SessionInfo",
    "Snapshot",
    "Span",
    "Store",
    "TurnRecord",
]


@runtime_checkable
class SessionHandle(Protocol):
    """A session claimed for writing (or opened read-only). Holds the writer's lease epoch."""

    @property
    def info(self) -> SessionInfo:
        """The session as of the last commit of this handle."""

    def commit(self, commit: Commit) -> int:
        """Make `commit` durable and return the new head.

        Raises:
            StaleWriterError: head or lease epoch is no longer this handle's; nothing was written.
            InputError: it does not continue the session (positions, turn numbers, K/V shapes or
                dtype), or holds what cannot be stored; nothing was written.
            StoreReadOnlyError: the store is open read-only.
            StoreFullError: it would exceed a limit of bytes; nothing was written.
            StoreError: the disk refuses; nothing was stored and the commit can be repeated.

        An interrupt (KeyboardInterrupt) may arrive when the commit is durable already: `info.head`
        tells, and the caller has to look.
        """

    def snapshot(self, lazy: Sequence[str] = ()) -> Snapshot | None:
        """The state at the head, checked against its checksums; None before the first commit.

        Args:
            lazy: append-only tensors whose name starts with one of these are not read;
                `Snapshot.lazy` tells how many rows each has, `read_blocks` reads them.

        Raises:
            CorruptDataError: a file is missing, short, foreign or altered.
        """

    def read_kv(self, layer: int, start: int, stop: int) -> Tensor:
        """K/V rows ``[stop - start, 2, H_kv, D]`` of one layer, checked against their checksums.

        Raises:
            CorruptDataError: as `snapshot`.
            IndexError: rows that were never committed.
            StoreError: they were dropped when files were merged.
        """

    def read_spans(self, layer: int, spans: Sequence[tuple[int, int]]) -> list[Tensor]:
        """K/V rows ``[stop - start, 2, H_kv, D]`` of one layer for each span ``(start, stop)``.

        As `read_kv` for all of them at once: what lies together is read together. May be called
        from any thread.
        """

    def read_blocks(self, name: str, spans: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Rows ``start .. stop`` of an append-only tensor (`Commit.blocks`) for each span.

        Rows are counted along dim 0 of the concatenation over all commits. Only what holds one of
        the rows is read. May be called from any thread.

        Raises:
            CorruptDataError: as `snapshot`.
            IndexError: rows, or a tensor, that were never committed.
        """

    def merge(self, upto: int, *, drop_kv: bool = False, keep: int = 0) -> bool:
        """Merge small files of commits that end at or before token `upto` into one, if they hold
        enough; True if it did, and there may be more to merge.

        What the session holds stays the same. May be called from another thread while the session
        is used. A store without files does nothing.

        Args:
            upto: end of the last closed block of committed tokens.
            drop_kv: leave out K/V rows, but for those of the first merged file and of files that
                hold a row before `keep`; they cannot be read again.
            keep: tokens whose K/V always stays.

        Raises:
            CorruptDataError: a file to merge is missing or altered; nothing was changed.
            StaleWriterError: another writer took the session over; nothing was changed.
            StoreReadOnlyError: the store is open read-only.
            StoreError: the disk refuses; nothing was changed.
        """

    def turns(self, start: int = 0, stop: int | None = None) -> list[TurnRecord]:
        """Turns ``start <= index < stop``, in order; indices beyond the last turn are ignored.

        Raises:
            CorruptDataError: a turn's record is missing or altered.
        """

    def turns_at(self, positions: Sequence[int]) -> list[TurnRecord]:
        """For each token position the turn that holds it.

        Raises:
            CorruptDataError: as `turns`.
            IndexError: a position that was never committed.
        """

    def limit(self, *, max_bytes: int | None, ttl: float | None) -> None:
        """Set how many bytes the session may be charged with, and when it expires; see `SessionInfo`.

        A limit below what it holds lets it be read, and refuses the next commit. On a read-only
        store nothing is kept.

        Raises:
            ConfigError: a value is not positive.
            StaleWriterError: head or lease epoch is no longer this handle's.
        """

    def close(self) -> None:
        """Release the claim. Closing twice is fine."""


@runtime_checkable
class Records(Protocol):
    """Namespaced JSON documents for adapters, durable on return, in the same database."""

    def put(self, namespace: str, key: str, value: Any, *, session: str | None = None) -> None:
        """Store or replace; with `session`, the record is deleted together with that session.

        Raises:
            SessionNotFoundError: there is no session of that id, so that the record would never go.
            InputError: `value` is not JSON-able.
        """

    def get(self, namespace: str, key: str) -> Any | None:
        """The value, or None."""

    def list(self, namespace: str, prefix: str = "") -> list[tuple[str, Any]]:
        """(key, value) pairs whose key starts with `prefix`, ordered by key."""

    def delete(self, namespace: str, key: str) -> bool:
        """Delete; False if there was none."""


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

    def sessions(self, owner: str | None = None) -> list[SessionInfo]:
        """All sessions (of one owner), the most recently used first."""

    def stage(self, handle: SessionHandle, info: SessionInfo) -> SessionHandle:
        """A hidden, empty stand-in for a claimed session, to be rebuilt under a new `info`.

        It keeps the session's id and is invisible to `sessions`. Unless `publish`ed it is dropped
        when it is closed, at the latest on the next opening of the store.
        """

    def publish(self, handle: SessionHandle, staged: SessionHandle) -> None:
        """In one transaction let `handle`'s session hold what `staged` holds; closes `staged`.

        `handle` stays valid, with the new info, head and files; its old files are unlinked, the
        session's records stay.

        Raises:
            InputError: `staged` does not come from `stage` for the same session.
        """

    def delete(self, session_id: str) -> None:
        """Delete a session, its files and its records.

        Raises:
            SessionNotFoundError: there is none of that id.
            SessionInUseError: it is open in this process.
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
