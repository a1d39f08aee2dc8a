"""What a session holds, gathered from its files.

Spans that lie in one file are read together; a file that is opened once serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longmem.errors import CorruptDataError
from longmem.store import SessionInfo, Snapshot
from longmem.stores.checks import check_block_rows, check_rows
from longmem.stores.files import Extent, Files
from longmem.stores.open_file import TurnFile
from longmem.stores.turn_file import FileRow

Opener = Callable[[FileRow], TurnFile]
Span = tuple[int, int]
Piece = tuple[Extent, int, int]
"""Where a part of a span lies: which extent, and its rows ``from .. to`` in the file's tensor."""


@dataclass(frozen=True)
class Reading:
    """A session's files as they stood when the reading began.

    Args:
        opened: opens a file by its row, or finds it open.
    """

    info: SessionInfo
    files: Files
    opened: Opener

    def kv(self, layer: int, spans: Sequence[Span]) -> list[Tensor]:
        """K/V rows ``[stop - start, 2, H_kv, D]`` of one layer for each span."""
        parts: list[list[Piece]] = []
        for start, stop in spans:
            check_rows(self.info, layer, start, stop)
            parts.append([])
            done = start
            for extent, low, high in self.files.pieces(start, stop):
                base = extent.file.identity.start
                parts[-1].append((extent, low - base, high - base))
                done = high
            if done < stop:
                raise self._broken(f"no file is recorded for token {done}")
        return self._gather(f"kv.{layer}", parts, lambda: self._no_kv(layer))

    def blocks(self, name: str, spans: Sequence[Span]) -> list[Tensor]:
        """Rows of an append-only tensor for each span."""
        rows = self.files.block_edges(name, self.block_rows)[-1]
        for start, stop in spans:
            check_block_rows(self.info, name, start, stop, rows)
        parts = [
            list(self.files.block_pieces(name, start, stop, self.block_rows))
            for start, stop in spans
        ]
        return self._gather(f"blocks.{name}", parts, lambda: self._no_blocks(name))

    def snapshot(self, lazy: Sequence[str]) -> Snapshot | None:
        """The state at the head; tensors with a prefix in `lazy` are counted only."""
        info = self.info
        if info.head == 0:
            return None
        if self.files.head < info.head:
            raise self._broken(f"{self.files.head} of {info.head} commits are recorded")
        parts: dict[str, list[Tensor]] = {}
        counts: dict[str, int] = {}
        state: dict[str, Tensor] = {}
        for extent in self.files.extents:
            if extent.first > info.head:
                break  # committed since
            rows = self.block_rows(extent)
            now = [name for name in rows if not name.startswith(tuple(lazy))]
            for name in rows.keys() - now:
                counts[name] = counts.get(name, 0) + rows[name]
            file = self.opened(extent.file) if now or extent.last >= info.head else None
            for name in now:
                assert file is not None
                parts.setdefault(name, []).extend(file.rows(f"blocks.{name}", [(0, rows[name])]))
            if extent.last >= info.head:
                assert file is not None
                state = file.state(info.head - extent.first)
        blocks = {name: torch.cat(tensors) for name, tensors in parts.items()}
        return Snapshot(info.head, info.n_tokens, info.n_turns, blocks, state, counts)

    def block_rows(self, extent: Extent) -> Mapping[str, int]:
        """Rows of each append-only tensor that the extent's commits have in its file."""
        if extent.file.blocks is not None and extent.commits == extent.file.identity.commits:
            return extent.file.blocks
        return self.opened(extent.file).block_rows(extent.commits)

    def _gather(
        self, name: str, parts: Sequence[Sequence[Piece]], nothing: Callable[[], Tensor]
    ) -> list[Tensor]:
        """Each span's pieces as one tensor; every file is asked once, for all it holds of them."""
        wanted: dict[str, tuple[FileRow, list[tuple[int, int, Span]]]] = {}
        for i, pieces in enumerate(parts):
            for j, (extent, low, high) in enumerate(pieces):
                _, spans = wanted.setdefault(extent.file.name, (extent.file, []))
                spans.append((i, j, (low, high)))
        found: dict[tuple[int, int], Tensor] = {}
        for file, spans in wanted.values():
            rows = self.opened(file).rows(name, [span for _, _, span in spans])
            found |= {(i, j): piece for (i, j, _), piece in zip(spans, rows, strict=True)}
        # cat copies: a piece may be a view into more that was read with it
        return [
            torch.cat([found[i, j] for j in range(len(pieces))]) if pieces else nothing()
            for i, pieces in enumerate(parts)
        ]

    def _no_kv(self, layer: int) -> Tensor:
        heads, dim = self.info.layout[layer]
        return torch.empty(0, 2, heads, dim, dtype=getattr(torch, self.info.dtype))

    def _no_blocks(self, name: str) -> Tensor:
        """No rows of an append-only tensor, in its shape and dtype."""
        for extent in self.files.extents:
            if name in self.block_rows(extent):
                return self.opened(extent.file).rows(f"blocks.{name}", [(0, 0)])[0]
        raise IndexError(f"session {self.info.id!r} has no append-only tensor {name!r}")

    def _broken(self, what: str) -> CorruptDataError:
        return CorruptDataError(
            f"session {self.info.id!r}: {what}; restore the store from a backup"
        )
