"""The far part of one layer's working set: initial tokens and looked-up blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longmem.memory.spec import LayerSpec


class WorkingSet:
    """Preallocated K/V ``[H_kv, n_init + topk * block_size, D]``, keys as the far query meets them.

    Args:
        spec: the layer.
        n_init: room for initial tokens.
        topk, block_size: room for looked-up blocks, in blocks and tokens.
        ordered: see blocks in stream order (MemoryConfig.far_positions) instead of all at n_local.
    """

    def __init__(
        self, spec: LayerSpec, n_init: int, topk: int, block_size: int, ordered: bool
    ) -> None:
        shape = (spec.kv_heads, n_init + topk * block_size, spec.dim)
        self._k = torch.zeros(shape, dtype=spec.dtype, device=spec.device)
        self._v = torch.zeros_like(self._k)
        self._n_init = self._n = 0
        self._spec = spec
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
        self._n_init = self._n = k.shape[1]
        self._k[:, : self._n] = k
        self._v[:, : self._n] = v

    def set_blocks(self, blocks: Sequence[Tensor]) -> None:
        """Hold these blocks, each ``[2, H_kv, n, D]`` raw, in stream order, oldest first."""
        self._n = self._n_init
        for i, kv in enumerate(blocks):
            stop = self._n + kv.shape[2]
            target = self._k[:, self._n : stop]
            self._v[:, self._n : stop] = kv[1]
            rank = len(blocks) - 1 - i
            if self._back is None or self._spec.rotary is None:
                target.copy_(kv[0])
            else:
                cos, sin = self._back
                source = kv[0].to(target.device)
                self._spec.rotary.rotate(source, (cos[rank], sin[rank]), out=target)
            self._n = stop
