"""A claimed session of an `InMemoryStore`."""

from __future__ import annotations

import json
import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longmem.errors import InputError, SessionClosedError, StaleWriterError
from longmem.store import Commit, CommitPoint, SessionInfo, Snapshot, TurnRecord
from longmem.stores.checks import check_block_rows, check_commit, check_positions, check_rows
from longmem.stores.forking import check_head
from longmem.stores.memory_usage import Totals, commit_bytes
from longmem.stores.quota import check_limits
from longmem.stores.rows import to_json, turn_values
from longmem.stores.words import ranked

if TYPE_CHECKING:
    from longmem.stores.memory import InMemoryStore


@dataclass
class Held:
    """What is stored of one session; commits hold clones of the caller's tensors.

    Args:
        shared: bytes that a stand-in was charged with for commits it took over.
    """

    info: SessionInfo
    commits: list[Commit] = field(default_factory=list)
    turns: list[TurnRecord] = field(default_factory=list)
    shared: int = 0

    def point(self, head: int) -> CommitPoint:
        """Where commit `head` ends."""
        n_turns = sum(len(commit.turns) for commit in self.commits[:head])
        return CommitPoint(head, n_turns, self.commits[head - 1].stop if head else 0)

    def beginning(
        self, info: SessionInfo, head: int, totals: Totals, *, staged: bool = False
    ) -> Held:
        """A session `info` with the first `head` commits of this one, charged with them.

        Raises:
            StoreFullError: there is no room for them, and it is no stand-in.
        """
        point, commits = self.point(head), self.commits[:head]
        needed = sum(map(commit_bytes, commits))
        if not staged:
            totals.check(info, needed)
        after = _at(totals.charge(info, needed), point)
        return Held(after, commits, self.turns[: point.n_turns], needed if staged else 0)

    def rewind(self, head: int, totals: Totals) -> None:
        """Drop the commits behind `head`, and what they were charged with."""
        point = self.point(head)
        info = totals.charge(self.info, -sum(map(commit_bytes, self.commits[head:])))
        self.info = replace(_at(info, point), updated_at=time.time())
        self.commits = self.commits[:head]
        self.turns = self.turns[: point.n_turns]

    def rows(self, layer: int, start: int, stop: int) -> Iterator[Tensor]:
        """The pieces of a layer's K/V rows ``start .. stop``, found by bisection."""
        at = bisect_right(self.commits, start, key=lambda commit: commit.start) - 1
        while start < stop:
            commit = self.commits[at]
            end = min(stop, commit.stop)
            yield commit.kv[layer][start - commit.start : end - commit.start]
            start, at = max(start, end), at + 1

    def turn_at(self, position: int) -> TurnRecord:
        """The turn that holds a token position."""
        return self.turns[bisect_right(self.turns, position, key=lambda turn: turn.start) - 1]


class InMemoryHandle:
    """`longmem.store.SessionHandle` in RAM; made by `InMemoryStore`."""

    def __init__(self, store: InMemoryStore, session: Held) -> None:
        self._store = store
        self._session: Held | None = session
        self._id = session.info.id

    @property
    def held(self) -> Held:
        """What the handle holds.

        Raises:
            SessionClosedError: nothing any more.
        """
        if self._session is None:
            raise SessionClosedError(f"session {self._id!r} was closed; open it again")
        return self._session

    @property
    def info(self) -> SessionInfo:
        """The session as of the last commit of this handle."""
        return self.held.info

    def commit(self, commit: Commit) -> int:
        """Keep clones of everything in `commit`; returns the new head."""
        with self._store.guard:
            session = self.held
            if not self._store.holds(session):
                raise StaleWriterError(f"session {self._id!r} was deleted; nothing was written")
            check_commit(session.info, commit)
            if commit.records and self._store.is_staged(session):
                raise InputError(
                    f"session {self._id!r}: a stand-in that is being rebuilt takes no records;"
                    " nothing was written. Put them when it is published."
                )
            totals, needed = self._store.totals, commit_bytes(commit)
            totals.check(session.info, needed, session.shared)
            kept = _kept(commit)
            session.commits.append(kept)
            session.turns.extend(kept.turns)
            session.info = totals.charge(_advanced(session.info, kept), needed)
            self._store.records.committed(commit.records, self._id, session.info.head)
            return session.info.head

    def snapshot(self, lazy: Sequence[str] = ()) -> Snapshot | None:
        """The state at the head; None before the first commit."""
        with self._store.guard:
            info, commits = self.held.info, list(self.held.commits)
        if not commits:
            return None
        blocks, counts = {}, {}
        for name in dict.fromkeys(name for commit in commits for name in commit.blocks):
            parts = [commit.blocks[name] for commit in commits if name in commit.blocks]
            if name.startswith(tuple(lazy)):
                counts[name] = sum(map(len, parts))
            else:
                blocks[name] = torch.cat(parts)
        state = _clones(commits[-1].state)
        return Snapshot(info.head, info.n_tokens, info.n_turns, blocks, state, counts)

    def read_kv(self, layer: int, start: int, stop: int) -> Tensor:
        """K/V rows ``[stop - start, 2, H_kv, D]`` of one layer."""
        with self._store.guard:
            held = self.held
            check_rows(held.info, layer, start, stop)
            heads, dim = held.info.layout[layer]
            nothing = torch.empty(0, 2, heads, dim, dtype=getattr(torch, held.info.dtype))
            return torch.cat([nothing, *held.rows(layer, start, stop)])

    def read_spans(self, layer: int, spans: Sequence[tuple[int, int]]) -> list[Tensor]:
        """K/V rows ``[stop - start, 2, H_kv, D]`` of one layer for each span."""
        return [self.read_kv(layer, start, stop) for start, stop in spans]

    def read_blocks(self, name: str, spans: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Rows of an append-only tensor for each span."""
        with self._store.guard:
            held = self.held
            parts = [commit.blocks[name] for commit in held.commits if name in commit.blocks]
        rows = sum(map(len, parts))
        for start, stop in spans:
            check_block_rows(held.info, name, start, stop, rows)
        if spans and not parts:
            raise IndexError(f"session {self._id!r} has no append-only tensor {name!r}")
        whole = torch.cat(parts) if parts else None
        return [whole[start:stop].clone() for start, stop in spans if whole is not None]

    def merge(self, upto: int, *, drop_kv: bool = False, keep: int = 0) -> bool:
        """Nothing to do: there are no files."""
        assert self.held  # refuses a closed handle
        return False

    def turns(self, start: int = 0, stop: int | None = None) -> list[TurnRecord]:
        """Turns ``start <= index < stop``, in order."""
        turns = self.held.turns
        end = len(turns) if stop is None else max(stop, 0)
        return turns[max(start, 0) : end]

    def turns_at(self, positions: Sequence[int]) -> list[TurnRecord]:
        """For each token position the turn that holds it."""
        session = self.held
        check_positions(session.info, positions)
        return [session.turn_at(position) for position in positions]

    def point(self, n_turns: int) -> CommitPoint:
        """The last commit that ends at or before the first `n_turns` turns."""
        within = [point for point in self.points() if point.n_turns <= n_turns]
        return within[-1] if within else CommitPoint(0, 0, 0)

    def points(self, start_head: int = 0) -> list[CommitPoint]:
        """Where the commits behind `start_head` end, in order."""
        with self._store.guard:
            commits = list(self.held.commits)
        ends = accumulate(len(commit.turns) for commit in commits)
        points = [
            CommitPoint(head, n_turns, commit.stop)
            for head, (commit, n_turns) in enumerate(zip(commits, ends, strict=True), 1)
        ]
        return points[max(start_head, 0) :]

    def rollback(self, head: int, *, window: int = 0) -> None:
        """Drop all commits behind `head`, their turns, and the records tied to them."""
        with self._store.guard:
            session = self.held
            if not self._store.holds(session):
                raise StaleWriterError(f"session {self._id!r} was deleted; nothing was changed")
            check_head(session.info, head)
            if head == session.info.head:
                return
            session.rewind(head, self._store.totals)
            if not self._store.is_staged(session):
                self._store.records.rewind(self._id, head)

    def search(self, query: str, k: int) -> list[tuple[int, float, str]]:
        """The `k` turns whose text matches words of `query` best: (turn index, score, snippet)."""
        with self._store.guard:
            turns = list(self.held.turns)
        return ranked(query, {turn.index: turn.text for turn in turns}, len(turns), k)

    def limit(self, *, max_bytes: int | None, ttl: float | None) -> None:
        """Set how many bytes the session may be charged with, and when it expires."""
        check_limits(max_bytes, ttl)
        with self._store.guard:
            session = self.held
            if not self._store.holds(session):
                raise StaleWriterError(f"session {self._id!r} was deleted; it takes no limits")
            session.info = replace(session.info, max_bytes=max_bytes, ttl=ttl)

    def close(self) -> None:
        """Release the claim. Closing twice is fine."""
        with self._store.guard:
            if self._session is not None:
                self._store.forget(self)
                self._session = None

    def take_over(self, session: Held) -> None:
        """Go on with another session of the same id; `InMemoryStore.publish` rebuilt it."""
        self._session = session


def _kept(commit: Commit) -> Commit:
    """A copy that shares nothing with the caller's."""
    return replace(
        commit,
        turns=[_kept_turn(turn) for turn in commit.turns],
        kv=[tensor.detach().cpu().clone() for tensor in commit.kv],
        blocks=_clones(commit.blocks),
        state=_clones(commit.state),
        records=(),
    )


def _kept_turn(turn: TurnRecord) -> TurnRecord:
    turn_values(turn)  # refuses what no other store could keep
    extra = json.loads(to_json(turn.extra))
    return replace(turn, ids=tuple(turn.ids), spans=tuple(turn.spans), extra=extra)


def _clones(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def _at(info: SessionInfo, point: CommitPoint) -> SessionInfo:
    return replace(info, head=point.head, n_turns=point.n_turns, n_tokens=point.n_tokens)


def _advanced(info: SessionInfo, commit: Commit) -> SessionInfo:
    return replace(
        info,
        head=info.head + 1,
        n_turns=info.n_turns + len(commit.turns),
        n_tokens=commit.stop,
        updated_at=time.time(),
    )
