"""The far part of one layer's working set: initial tokens and looked-up blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from longmem.memory.block_at import Block, gather_blocks, located, tokens_of
from longmem.memory.spec import LayerSpec
from longmem.memory.uploading import upload


class WorkingSet:
    """K/V ``[H_kv, F, D]`` in one buffer that grows at need, keys as the far query meets them.

    Blocks lie in stream order without gaps, wherever a look-up before left them: results do not
    depend, by a last bit, on what was looked up earlier. A block that is chosen again is not copied
    again, but moved where blocks before it came or went. Where kernels serve, all chosen blocks are
    gathered anew, in one launch: they lie on the device, most of them. Keys lie as in `LocalBuffer`.

    Args:
        spec: the layer.
        n_init: room for initial tokens.
        topk, block_size: room for looked-up blocks, in blocks and tokens.
        ordered: see blocks in stream order (MemoryConfig.far_positions) instead of all at n_local.
    """

    def __init__(
        self, spec: LayerSpec, n_init: int, topk: int, block_size: int, ordered: bool
    ) -> None:
        self._spec = spec
        self._n_init = self._n = 0
        self._allocate(n_init + topk * block_size)
        self.unused: Tensor | None = None
        """``[H_kv, F]`` bool: which of the F tokens a KV head does not have; None: it has all."""
        self.length: Tensor | None = None
        """``[H_kv]``: how many of the F tokens each KV head has; None: all of them."""
        self.lengths: Sequence[int] | None = None
        """The same on the host."""
        self.stands_for: Sequence[Sequence[int]] = ()
        """The blocks held, in stream order: one list for all KV heads, or one for each."""
        self._starts: dict[int, tuple[int, int]] = {}  # where blocks held for all heads lie
        self._settled = 0
        self._back = None
        if ordered and spec.rotary is not None:
            rank = torch.arange(max(topk, 1), device=spec.device) * -block_size
            self._back = spec.rotary.angles(rank, spec.dtype)

    @property
    def k(self) -> Tensor:
        """Keys ``[H_kv, F, D]``, a view."""
        return self.columns.mT

    @property
    def columns(self) -> Tensor:
        """Keys ``[H_kv, D, F]``, as they lie."""
        return self._k.narrow(2, 0, self._n)

    @property
    def v(self) -> Tensor:
        """Values ``[H_kv, F, D]``, a view."""
        return self._v.narrow(1, 0, self._n)

    @property
    def initial(self) -> tuple[Tensor, Tensor]:
        """Raw keys and values ``[H_kv, n, D]`` of the initial tokens that left the window."""
        return self._k[:, :, : self._n_init].mT, self._v[:, : self._n_init]

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Where row 0 of keys and values lies where kernels read them, and the rows there is room for."""
        return self._k.data_ptr(), self._v.data_ptr(), self._v.shape[1]

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        return self._k.nbytes + self._v.nbytes

    def __len__(self) -> int:
        return self._n

    def set_initial(self, k: Tensor, v: Tensor) -> None:
        """Hold these initial tokens ``[H_kv, n, D]`` and no block."""
        self._n_init = k.shape[1]
        self.clear()
        self._reserve(self._n_init)
        self._k[:, :, : self._n_init] = k.mT
        self._v[:, : self._n_init] = v
        self._n = self._n_init

    def clear(self) -> None:
        """Hold no block."""
        self._n, self.length, self.unused, self.stands_for = self._n_init, None, None, ()
        self._starts, self.lengths = {}, None

    def holds(self, ids: Sequence[int], settled: int) -> set[int]:
        """Those of the blocks that `set_blocks` does not need.

        Args:
            ids: the blocks that will be set.
            settled: blocks with final values now; blocks placed before they had theirs are not kept.
        """
        if (
            self._spec.kernels or self._back is not None
        ):  # there a key is turned by its block's rank
            return set()
        changed = range(self._settled, settled)
        return {b for b in ids if b in self._starts and b not in changed}

    def set_blocks(
        self, ids: Sequence[int], blocks: Sequence[Block | None], settled: int = 0
    ) -> None:
        """Hold exactly these blocks for all heads.

        Args:
            ids: their numbers, in stream order.
            blocks: each raw ``[2, H_kv, n, D]``; None where the block is held already (`holds`).
            settled: blocks with final values.
        """
        held, self._starts, stop = self._starts, {}, self._n_init
        for b, kv in zip(ids, blocks, strict=True):
            start = stop
            stop += held[b][1] - held[b][0] if kv is None else tokens_of(kv)
            self._starts[b] = (start, stop)
        self._reserve(stop)
        kept = [b for b, kv in zip(ids, blocks, strict=True) if kv is None]
        self._move({b: (held[b][0], self._starts[b][0]) for b in kept})
        ranked = enumerate(zip(ids, blocks, strict=True))
        placed = [
            (kv, self._starts[b][0], len(ids) - 1 - i) for i, (b, kv) in ranked if kv is not None
        ]
        self._write(placed)
        self._n, self.length, self.lengths, self.unused = stop, None, None, None
        self.stands_for, self._settled = [ids], settled

    def stand_for(self, ids: Sequence[int], tokens: Sequence[int], settled: int) -> None:
        """A kernel wrote these blocks for all heads, where `set_blocks` would have; of so many tokens."""
        stops = [*accumulate(tokens, initial=self._n_init)]
        self._starts = {b: (stops[i], stops[i + 1]) for i, b in enumerate(ids)}
        self._n, self.length, self.lengths, self.unused = stops[-1], None, None, None
        self.stands_for, self._settled = [ids], settled

    def extend_blocks(self, ids: Sequence[int], blocks: Sequence[Block], settled: int = 0) -> None:
        """Hold these newer blocks, too; arguments as `set_blocks`."""
        for b, kv in zip(ids, blocks, strict=True):
            start, self._n = self._n, self._n + tokens_of(kv)
            self._starts[b] = (start, self._n)
        self._reserve(self._n)
        self._write([(kv, self._starts[b][0], 0) for b, kv in zip(ids, blocks, strict=True)])
        self.stands_for = [[*(self.stands_for[0] if self.stands_for else ()), *ids]]
        self._settled = settled

    def drop_changed(self, settled: int) -> None:
        """Let go of the blocks from the first on whose values became final after it was placed."""
        held = self.stands_for[0] if self.stands_for else ()
        gone = [b for b in held if b >= self._settled] if settled > self._settled else []
        if gone:
            self._n = self._starts[gone[0]][0]
            self.stands_for = [[b for b in held if b < gone[0]]]
            for b in gone:
                del self._starts[b]

    def set_blocks_by_head(
        self, ids: Sequence[Sequence[int]], blocks: Sequence[Sequence[Block]]
    ) -> None:
        """Hold other blocks for each KV head: each raw ``[2, H_kv, n, D]``, in stream order."""
        self.clear()
        stops, rows = [], []
        for own in blocks:
            ends = [*accumulate(map(tokens_of, own), initial=self._n_init)]
            stops.append(ends[-1])
            rows.append([(kv, ends[i], len(own) - 1 - i) for i, kv in enumerate(own)])
        self._reserve(max(stops))
        self._write(*rows)
        self._n, self.stands_for, self.lengths = max(stops), ids, stops
        self.length = upload(torch.tensor(stops), self._spec.device)
        self.unused = torch.arange(self._n, device=self._spec.device) >= self.length[:, None]

    def _write(self, *rows: Sequence[tuple[Block, int, int]]) -> None:
        """Write (block, row where it begins, rank) for all heads, or a sequence for each."""
        rotary, turn = self._spec.rotary, None
        if self._back is not None and rotary is not None:
            turn = rotary, self._back
        if self._spec.kernels:
            at = [
                [(located(kv, self._v.device), start, rank) for kv, start, rank in row]
                for row in rows
            ]
            gather_blocks(at, self._k.mT, self._v, turn)
            return
        for head, row in enumerate(rows):
            at_heads = slice(None) if len(rows) == 1 else slice(head, head + 1)
            for kv, start, rank in row:
                assert isinstance(kv, Tensor)
                self._place(at_heads, start, kv[:, at_heads], rank)

    def _move(self, moves: dict[int, tuple[int, int]]) -> None:
        """Move blocks (from, to) that keep their order: to the left from the left on, then to the right
        from the right on, so that none is written over before it has moved."""
        left = [(b, *move) for b, move in moves.items() if move[1] < move[0]]
        right = [(b, *move) for b, move in moves.items() if move[1] > move[0]]
        for b, old, new in [*left, *reversed(right)]:
            n = self._starts[b][1] - self._starts[b][0]
            _shift(self._k, 2, old, new, n)
            _shift(self._v, 1, old, new, n)

    def _place(self, heads: slice, start: int, kv: Tensor, rank: int) -> None:
        """Write one block at `start`."""
        stop = start + kv.shape[2]
        target = self._k[heads, :, start:stop].mT
        self._v[heads, start:stop] = kv[1]
        if self._back is None or self._spec.rotary is None:
            target.copy_(kv[0])
        else:
            cos, sin = self._back
            source = kv[0].to(target.device)
            self._spec.rotary.rotate(source, (cos[rank], sin[rank]), out=target)

    def _reserve(self, tokens: int) -> None:
        if tokens <= self._v.shape[1]:
            return
        k, v = self._k, self._v
        self._allocate(tokens * 3 // 2)
        self._k[:, :, : k.shape[2]] = k
        self._v[:, : v.shape[1]] = v

    def _allocate(self, tokens: int) -> None:
        spec = self._spec
        shape = (spec.kv_heads, tokens, spec.dim)
        self._v = torch.zeros(shape, dtype=spec.dtype, device=spec.device)
        self._k = spec.zeros_for_keys(tokens=tokens)


def _shift(buffer: Tensor, dim: int, old: int, new: int, n: int) -> None:
    """Move n entries of `dim` within a buffer; source and target may overlap."""
    source = buffer.narrow(dim, old, n)
    if abs(new - old) < n:
        source = source.clone()
    buffer.narrow(dim, new, n).copy_(source)
