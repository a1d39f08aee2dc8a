"""Semantic blocks: where they end, and the index of their representative keys."""

from __future__ import annotations

from bisect import bisect_right

import torch
from torch import Tensor

from longmem.memory.spec import LayerSpec
from longmem.retrieval import Representatives


class BlockTable:
    """Absolute positions at which blocks end; the same for all layers of a session.

    Block i covers positions ``edges[i] .. edges[i + 1]``; ``edges[0]`` is the end of the initial
    tokens. A block is closed, and a candidate of look-ups, once n_local newer tokens exist.
    """

    def __init__(self, n_init: int, block_size: int, at_turns: bool, n_local: int) -> None:
        self.n_init = n_init
        self.edges = [n_init]
        self._block_size = block_size
        self._at_turns = at_turns
        self._n_local = n_local

    def begin_turn(self, position: int) -> None:
        """A turn starts at `position`."""
        self.extend(position)
        if self._at_turns and position > self.edges[-1]:
            self.edges.append(position)

    def extend(self, position: int) -> None:
        """Tokens up to `position` are known: end the blocks that are full."""
        while self.edges[-1] + self._block_size <= position:
            self.edges.append(self.edges[-1] + self._block_size)

    def closed(self, position: int) -> int:
        """How many blocks are closed when `position` tokens exist; -1 while not even the initial
        tokens have left the window."""
        return bisect_right(self.edges, position - self._n_local) - 1

    def span(self, block: int) -> tuple[int, int]:
        """Absolute positions (start, stop) of a block."""
        return self.edges[block], self.edges[block + 1]

    def truncate(self, n_edges: int) -> None:
        """Forget the edges beyond the first `n_edges`."""
        del self.edges[n_edges:]


class BlockIndex:
    """Representative keys of one layer's closed blocks, packed ``[H_kv, M, D]`` without padding.

    Representatives are the R tokens that received most attention while in the window, per KV head
    (InfLLM, arXiv 2402.04617, section 3.2); all keys of a block that has no more than R. All of
    them are stored, not their mean.
    """

    def __init__(self, spec: LayerSpec, n_repr: int) -> None:
        self._spec = spec
        self._n_repr = n_repr
        self._starts = [0]  # first row of each block, and the end
        self._allocate(256)

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def representatives(self) -> Representatives:
        """A view of the index for a scorer."""
        rows = self._starts[-1]
        return Representatives(
            self._keys[:, :rows], self._block[:rows], len(self), self._spec.scaling
        )

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        return self._keys.nbytes + self._block.nbytes

    def choose(self, raw: Tensor, mass: Tensor) -> Tensor:
        """The representatives ``[H_kv, r, D]``, r = min(R, n), of a block's n raw keys
        ``[H_kv, n, D]`` by their attention mass ``[H_kv, n]``."""
        if raw.shape[1] <= self._n_repr:
            return raw
        best = mass.topk(self._n_repr, dim=1).indices
        return raw.gather(1, best[..., None].expand(-1, -1, raw.shape[2]))

    def append(self, keys: Tensor) -> None:
        """Add one block by its representatives ``[H_kv, r, D]``."""
        first, rows = self._starts[-1], keys.shape[1]
        self._reserve(rows)
        self._keys[:, first : first + rows] = keys
        self._block[first : first + rows] = len(self)
        self._starts.append(first + rows)

    def export(self, since: int) -> tuple[Tensor, Tensor]:
        """Blocks from `since` on: keys ``[M', H_kv, D]`` and their number per block ``[N']`` int32."""
        starts = torch.tensor(self._starts[since:], dtype=torch.int32)
        keys = self._keys[:, self._starts[since] : self._starts[-1]]
        return keys.transpose(0, 1).contiguous(), starts.diff()

    def load(self, keys: Tensor, counts: Tensor) -> None:
        """Take over what `export` (with ``since=0``) gave."""
        self.truncate(0)
        rows = keys.shape[0]
        self._reserve(rows)
        self._keys[:, :rows] = keys.transpose(0, 1)
        blocks = torch.arange(len(counts), dtype=torch.int32)
        self._block[:rows] = torch.repeat_interleave(blocks, counts)
        self._starts = [0, *counts.cumsum(0).tolist()]

    def truncate(self, n: int) -> None:
        """Forget the blocks from `n` on."""
        del self._starts[n + 1 :]

    def _reserve(self, rows: int) -> None:
        held = self._starts[-1]
        if held + rows <= self._block.shape[0]:
            return
        keys, block = self._keys, self._block
        self._allocate((held + rows) * 3 // 2)
        self._keys[:, :held] = keys[:, :held]
        self._block[:held] = block[:held]

    def _allocate(self, rows: int) -> None:
        spec = self._spec
        shape = (spec.kv_heads, rows, spec.dim)
        self._keys = torch.zeros(shape, dtype=spec.dtype, device=spec.device)
        self._block = torch.zeros(rows, dtype=torch.int32, device=spec.device)
