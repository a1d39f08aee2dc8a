"""Where a session's memory reads back what was committed: the part of a store's handle it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class BlockSource(Protocol):
    """Committed rows of one session; `longmem.store.SessionHandle` is one. Called from several
    threads at once."""

    def read_kv(self, layer: int, start: int, stop: int) -> Tensor:
        """Raw K/V rows ``[stop - start, 2, H_kv, D]`` of a layer's tokens."""

    def read_spans(self, layer: int, spans: Sequence[tuple[int, int]]) -> list[Tensor]:
        """The same for many spans of absolute positions at once."""

    def read_blocks(self, name: str, spans: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Rows of an append-only tensor of the session's commits, one tensor per span."""
