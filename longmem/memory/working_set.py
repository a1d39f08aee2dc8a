"""The far part of one layer's working set: initial tokens and looked-up blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longmem.memory.spec import LayerSpec


class WorkingSet:
    """K/V ``[H_kv, F, D]`` in one buffer that grows at need, keys as the far query meets them.

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
        self.length: Tensor | None = None
        """``[H_kv]``: how many of the F tokens each KV head has; None: all of them."""
        self.stands_for: Sequence[Sequence[int]] = ()
        """The blocks held, in stream order: one list for all KV heads, or one for each."""
        self._back = None
        if ordered and spec.rotary is not None:
            rank = torch.arange(max(topk, 1), device=spec.device) * -block_size
            self._back = spec.rotary.angles(rank, spec.dtype)

    @property
    def k(self) -> Tensor:
        """Keys ``[H_kv, F, D]``."""
        return self._k[:, : self._n]

    @property
    def v(self) -> Tensor:
        """Values ``[H_kv, F, D]``."""
        return self._v[:, : self._n]

    @property
    def initial(self) -> tuple[Tensor, Tensor]:
        """Raw keys and values ``[H_kv, n, D]`` of the initial tokens that left the window."""
        return self._k[:, : self._n_init], self._v[:, : self._n_init]

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        return self._k.nbytes + self._v.nbytes

    def set_initial(self, k: Tensor, v: Tensor) -> None:
        """Hold these initial tokens ``[H_kv, n, D]`` and no block."""
        self._n_init = k.shape[1]
        self.clear()
        self._reserve(self._n_init)
        self._k[:, : self._n_init] = k
        self._v[:, : self._n_init] = v
        self._n = self._n_init

    def clear(self) -> None:
        """Hold no block."""
        self._n, self.length, self.stands_for = self._n_init, None, ()

    def set_blocks(self, ids: Sequence[int], blocks: Sequence[Tensor]) -> None:
        """Hold these blocks for all heads, each ``[2, H_kv, n, D]`` raw, in stream order."""
        self.clear()
        self._reserve(self._n_init + sum(kv.shape[2] for kv in blocks))
        for i, kv in enumerate(blocks):
            self._n = self._place(slice(None), self._n, kv, len(blocks) - 1 - i)
        self.stands_for = [ids]

    def extend_blocks(self, ids: Sequence[int], blocks: Sequence[Tensor]) -> None:
        """Hold these newer blocks, too."""
        self._reserve(self._n + sum(kv.shape[2] for kv in blocks))
        for kv in blocks:
            self._n = self._place(slice(None), self._n, kv, 0)
        self.stands_for = [[*(self.stands_for[0] if self.stands_for else ()), *ids]]

    def set_blocks_by_head(
        self, ids: Sequence[Sequence[int]], blocks: Sequence[Sequence[Tensor]]
    ) -> None:
        """Hold other blocks for each KV head: each ``[2, H_kv, n, D]`` raw, in stream order."""
        self.clear()
        self._reserve(self._n_init + max(sum(kv.shape[2] for kv in own) for own in blocks))
        stops = []
        for head, own in enumerate(blocks):
            stop, at = self._n_init, slice(head, head + 1)
            for i, kv in enumerate(own):
                stop = self._place(at, stop, kv[:, at], len(own) - 1 - i)
            stops.append(stop)
        self._n, self.stands_for = max(stops), ids
        self.length = torch.tensor(stops, device=self._spec.device)

    def _place(self, heads: slice, start: int, kv: Tensor, rank: int) -> int:
        """Write one block at `start`; gives where it ends."""
        stop = start + kv.shape[2]
        target = self._k[heads, start:stop]
        self._v[heads, start:stop] = kv[1]
        if self._back is None or self._spec.rotary is None:
            target.copy_(kv[0])
        else:
            cos, sin = self._back
            source = kv[0].to(target.device)
            self._spec.rotary.rotate(source, (cos[rank], sin[rank]), out=target)
        return stop

    def _reserve(self, tokens: int) -> None:
        if tokens <= self._k.shape[1]:
            return
        k, v = self._k, self._v
        self._allocate(tokens * 3 // 2)
        self._k[:, : self._n] = k[:, : self._n]
        self._v[:, : self._n] = v[:, : self._n]

    def _allocate(self, tokens: int) -> None:
        spec = self._spec
        shape = (spec.kv_heads, tokens, spec.dim)
        self._k = torch.zeros(shape, dtype=spec.dtype, device=spec.device)
        self._v = torch.zeros_like(self._k)
