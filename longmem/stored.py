"""What a session hands to its store, and what it gets back.

Shapes: T tokens of the commit, H_kv key/value heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
class Record:
    """One JSON document for an adapter; see `longmem.records.Records`."""

    namespace: str
    key: str
    value: Any


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
        records: documents that become durable with the exchange; they go when the commit goes.
    """

    parent: int
    turns: Sequence[TurnRecord]
    start: int
    stop: int
    kv: Sequence[Tensor]
    blocks: Mapping[str, Tensor]
    state: Mapping[str, Tensor]
    records: Sequence[Record] = ()


@dataclass(frozen=True)
class CommitPoint:
    """Where a commit ends: what a session held once it was through.

    Args:
        head: its number, from 1; 0 stands for the empty session.
        n_turns, n_tokens: turns and tokens up to there.
    """

    head: int
    n_turns: int
    n_tokens: int


@dataclass(frozen=True)
class Snapshot:
    """What a resumed session starts from: everything later results read, K/V rows apart.

    Args:
        lazy: rows of each append-only tensor that was left out, by name; see
            `SessionHandle.read_blocks`.
    """

    head: int
    n_tokens: int
    n_turns: int
    blocks: Mapping[str, Tensor]
    state: Mapping[str, Tensor]
    lazy: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SessionInfo:
    """A session as `Store.sessions` lists it.

    Args:
        fingerprint: JSON-able parts (model, tokenizer, template, layout ...) checked on resume.
        layout: per layer (H_kv, D); the shape of the K/V rows.
        dtype: name of the K/V dtype, for instance "float32".
        head: number of commits so far.
        bytes: bytes this session's files hold on disk; a file that it shares with others counts in
            full for each of them.
        charged: bytes that count against `max_bytes`: those files and the session's rows.
        max_bytes: most bytes it may be charged with; None: no limit.
        ttl: seconds after `updated_at` when `Store.sweep` may delete it; None: never.
        parent: id of the session it was forked from, which may be gone by now; None: of none.
        parent_turn: index of the last turn it took over from there; -1: it took none.
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
    charged: int = 0
    max_bytes: int | None = None
    ttl: float | None = None
    parent: str | None = None
    parent_turn: int | None = None

    @property
    def expires_at(self) -> float | None:
        """Unix seconds from which it may be deleted; None: it may not."""
        return None if self.ttl is None else self.updated_at + self.ttl

    def expired(self, now: float) -> bool:
        """Whether that time has come at `now`, Unix seconds."""
        return self.expires_at is not None and self.expires_at <= now


@dataclass(frozen=True)
class Problem:
    """One finding of `Store.verify`."""

    session: str | None
    file: str | None
    message: str
