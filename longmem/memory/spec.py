"""What memory has to know of one attention layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longmem.ops.kernels import kernels_serve
from longmem.ops.rotary import Rotary


@dataclass(frozen=True, eq=False)
class LayerSpec:
    """One attention layer, as measured on the loaded model.

    Args:
        index: number of the layer.
        heads, kv_heads, dim: H, H_kv and D.
        rotary: how it rotates queries and keys; None where it does not (NoPE).
        sliding: tokens of the layer's own sliding window; None for full attention.
        scaling: factor of the logits.
        dtype, device: of its keys and values.
    """

    index: int
    heads: int
    kv_heads: int
    dim: int
    rotary: Rotary | None
    sliding: int | None
    scaling: float
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's key and value."""
        return 2 * self.kv_heads * self.dim * self.dtype.itemsize

    @property
    def kernels(self) -> bool:
        """Whether its keys and values are read by the ops' kernels."""
        return kernels_serve(self.device, self.dtype, self.dim)

    def zeros_for_keys(self, *leading: int, tokens: int) -> Tensor:
        """Room for keys ``[*leading, H_kv, D, tokens]``: side by side in memory as they are written here,
        which is how a CPU reads them fastest, or token by token, as kernels read them."""
        shape = (*leading, self.kv_heads, tokens, self.dim)
        if not self.kernels:
            shape = (*leading, self.kv_heads, self.dim, tokens)
        made = torch.zeros(shape, dtype=self.dtype, device=self.device)
        return made.mT if self.kernels else made
