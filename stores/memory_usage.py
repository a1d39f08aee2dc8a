"""Running totals of what an `InMemoryStore` holds; the caller holds the store's guard."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from longmem.store import Commit, SessionInfo
from longmem.stores.quota import ROW_BYTES, Limits, Usage, session_bytes, tensor_bytes, turn_bytes
from longmem.stores.rows import turn_values


class Totals:
    """Bytes by owner (None for those without one) and of all; see `longmem.stores.quota`.

    Args:
        limits: of the store and its owners.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_owner: Counter[str | None] = Counter()
        self._all = 0

    def enter(self, info: SessionInfo) -> SessionInfo:
        """A new session; returns it as charged.

        Raises:
            StoreFullError: there is no room for it.
        """
        return self.charge(replace(info, charged=0), session_bytes(info))

    def charge(self, info: SessionInfo, needed: int) -> SessionInfo:
        """`info` charged with `needed` bytes more.

        Raises:
            StoreFullError: a limit would be exceeded; nothing was charged.
        """
        self.check(info, needed)
        self._add(info.owner, needed)
        return replace(info, charged=info.charged + needed)

    def check(self, info: SessionInfo, needed: int) -> None:
        """Refuse what does not fit.

        Raises:
            StoreFullError: a limit would be exceeded.
        """
        self._limits.check(info, self.used(info), needed)

    def used(self, info: SessionInfo) -> Usage:
        """What a session, its owner and the store hold."""
        return Usage(info.charged, self._by_owner[info.owner], self._all)

    def leave(self, info: SessionInfo) -> None:
        """A session goes with all it was charged with."""
        self._add(info.owner, -info.charged)
        if not self._by_owner[info.owner]:
            del self._by_owner[info.owner]

    def _add(self, owner: str | None, bytes: int) -> None:
        self._by_owner[owner] += bytes
        self._all += bytes


def commit_bytes(commit: Commit) -> int:
    """What a commit counts in RAM: its tensors and turns.

    Raises:
        InputError: a turn that no store can keep.
    """
    tensors = [*commit.kv, *commit.blocks.values(), *commit.state.values()]
    turns = [turn_values(turn) for turn in commit.turns]
    return tensor_bytes(tensors) + turn_bytes(turns) + ROW_BYTES
