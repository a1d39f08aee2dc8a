"""What a session holds of its place in a store while it is open.

Shapes: T tokens of the commit, H_kv key/value heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from longmem.stored import Commit, CommitPoint, SessionInfo, Snapshot, TurnRecord


@runtime_checkable
class SessionHandle(Protocol):
    """A session claimed for writing (or opened read-only). Holds the writer's lease epoch."""

    @property
    def info(self) -> SessionInfo:
        """The session as of the last commit of this handle."""

    def commit(self, commit: Commit) -> int:
        """Make `commit` durable and return the new head.

        Its records are written in the same transaction, tied to the session and to this commit.

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

    def point(self, n_turns: int) -> CommitPoint:
        """The last commit that ends at or before the first `n_turns` turns; head 0 if there is none."""

    def points(self, start_head: int = 0) -> list[CommitPoint]:
        """Where the commits behind `start_head` end, in order."""

    def rollback(self, head: int, *, window: int = 0) -> None:
        """Drop all commits behind `head`, their turns, and the records tied to them.

        One transaction. The handle stays valid; what it reads is bit for bit what it read when the
        session was at `head`, and the next commit continues from there. Sessions forked from later
        commits keep theirs. Rolling back to the present head changes nothing.

        Args:
            head: number of commits to keep; 0 empties the session.
            window: tokens before that head whose K/V somebody is going to read.

        Raises:
            InputError: `head` is none of the session's.
            StoreError: K/V rows of the window were dropped when files were merged; nothing was
                changed.
            StaleWriterError: head or lease epoch is no longer this handle's; nothing was changed.
            StoreReadOnlyError: the store is open read-only.
        """

    def search(self, query: str, k: int) -> list[tuple[int, float, str]]:
        """The `k` turns whose text matches words of `query` best: (turn index, score, snippet).

        Any text is a valid query; a turn matches if it holds one of its words. The score is BM25
        over this session's turns alone, higher is better; of equal ones the newest comes first.

        Raises:
            StoreError: this build of SQLite has no full-text search.
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
