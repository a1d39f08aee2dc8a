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
        needed = session_bytes(info)
        self.check(replace(info, charged=0), needed)
        return self.charge(replace(info, charged=0), needed)

    def charge(self, info: SessionInfo, needed: int) -> SessionInfo:
        """`info` charged with `needed` bytes more, for which there is room, or which it gives back."""
        self._add(info.owner, needed)
        return replace(info, charged=info.charged + needed)

    def check(self, info: SessionInfo, needed: int, shared: int = 0) -> None:
        """Refuse what does not fit.

        Args:
            shared: see `longmem.stores.quota.Usage.without`.

        Raises:
            StoreFullError: a limit would be exceeded.
        """
        self._limits.check(info, self.used(info).without(shared), needed)

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
