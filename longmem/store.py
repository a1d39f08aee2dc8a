"""The contract between a session and the place where it lives.

Data flows one way: a session hands a `Commit` to its `SessionHandle`; when `commit` returns, the
exchange is durable. A store knows nothing of attention: K/V rows are addressed by layer and
absolute token position, everything else is named tensors it keeps byte for byte.

Shapes: T tokens of the commit, H_kv key/value heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from torch import Tensor

Span = tuple[int, int] | tuple[int, int, tuple[int, ...]]
"""One look-up span: (tokens read in it, leading tokens whose queries did the look-up), and the layers
that looked up where not all did."""


@dataclass(frozen=True)
class TurnRecord:
    """One committed turn: the record from which everything else can be rebuilt.

    Args:
        index: position of the turn in the session, from 0.
        role: "system", "user", "assistant" or "tool".
        text: what a person reads; reasoning is not in it.
        ids: the exact token ids read, template pieces included.
        start: absolute position of the first of them in the session's token stream.
        spans: look-up spans the ids were read with, in order; their tokens sum to ``len(ids)``.
        created_at: Unix seconds.
        extra: JSON-able details (for instance ``reasoning``, ``finish_reason``).
    """

    index: int
    role: str
    text: str
    ids: tuple[int, ...]
    start: int
    spans: tuple[Span, ...]
    created_at: float
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stop(self) -> int:
        """Absolute position behind the last token."""
        return self.start + len(self.ids)


@dataclass(frozen=True)
class Commit:
    """One exchange, or several turns given at once: becomes durable as a whole or not at all.

    Args:
        parent: head the writer built on (0 for a new session); compared and set by the store.
        turns: the new turns, contiguous; they cover positions ``start .. stop``.
        start, stop: absolute token positions, ``start`` inclusive.
        kv: per layer ``[T, 2, H_kv, D]``: un-rotated keys and values of the new tokens.
        blocks: append-only tensors (block table, representatives); on load, the tensors of all
            commits are concatenated along dim 0, name by name: one dtype and one trailing shape
            per name.
        state: tensors that replace those of the previous commit (score sums, RNG, offsets).
    """

    parent: int
    turns: Sequence[TurnRecord]
    start: int
    stop: int
    kv: Sequence[Tensor]
    blocks: Mapping[str, Tensor]
    state: Mapping[str, Tensor]


@dataclass(frozen=True)
class Snapshot:
    """What a resumed session starts from: everything later results read, K/V rows apart."""

    head: int
    n_tokens: int
    n_turns: int
    blocks: Mapping[str, Tensor]
    state: Mapping[str, Tensor]


@dataclass(frozen=True)
class SessionInfo:
    """A session as `Store.sessions` lists it.

    Args:
        fingerprint: JSON-able parts (model, tokenizer, template, layout ...) checked on resume.
        layout: per layer (H_kv, D); the shape of the K/V rows.
        dtype: name of the K/V dtype, for instance "float32".
        head: number of commits so far.
        bytes: bytes this session's files hold on disk (shared files counted once).
    """

    id: str
    owner: str | None
    metadata: Mapping[str, Any]
    fingerprint: Mapping[str, str]
    layout: tuple[tuple[int, int], ...]
    dtype: str
    created_at: float
    updated_at: float
    head: int = 0
    n_turns: int = 0
    n_tokens: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Problem:
    """One finding of `Store.verify`."""

    session: str | None
    file: str | None
    message: str


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
            StoreError: the disk refuses; nothing was stored and the commit can be repeated.

        An interrupt (KeyboardInterrupt) may arrive when the commit is durable already: `info.head`
        tells, and the caller has to look.
        """

    def snapshot(self) -> Snapshot | None:
        """The state at the head, checked against its checksums; None before the first commit.

        Raises:
            CorruptDataError: a file is missing, short, foreign or altered.
        """

    def read_kv(self, layer: int, start: int, stop: int) -> Tensor:
        """K/V rows ``[stop - start, 2, H_kv, D]`` of one layer, checked against their checksums.

        Raises:
            CorruptDataError: as `snapshot`.
            IndexError: rows that were never committed.
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
