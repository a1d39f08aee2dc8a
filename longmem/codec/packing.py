"""A block's payload in one piece of memory, so that one copy moves it and a kernel finds it by its address.

    key scales [H_kv, D, 2] float16 | codes [n, 2, H_kv, D'] | value scales [n, H_kv, 2] float16

The blocks of a group repeat its key scales, 4 * H_kv * D bytes each: 1.5 % of an int8 block of 128
tokens at D = 128.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longmem.codec.base import Payload

_SCALES = torch.float16


@dataclass(frozen=True, eq=False)
class Packed(Payload):
    """A payload whose tensors are views of one piece.

    Args:
        memory: ``[bytes]`` uint8, all of it.
    """

    memory: Tensor | None = None

    @property
    def piece(self) -> Tensor:
        """`memory`."""
        assert self.memory is not None
        return self.memory


@dataclass(frozen=True)
class Packing:
    """How a codec's payloads of one layer lie in memory.

    Args:
        kv_heads: H_kv.
        dim: D.
        bits: of one code: 16 (bfloat16), 8 or 4.
    """

    kv_heads: int
    dim: int
    bits: int

    def nbytes(self, tokens: int) -> int:
        """Bytes of a block."""
        return sum(self._parts(tokens))

    def payload(self, memory: Tensor, tokens: int) -> Packed:
        """The payload that lies, or will lie, in `memory` ``[nbytes(tokens)]`` uint8."""
        before, between, _ = self._parts(tokens)
        keys, codes = memory[:before], memory[before : before + between]
        values = memory[before + between :]
        heads = self.kv_heads
        if self.bits == 16:
            return Packed(
                codes.view(torch.bfloat16).view(tokens, 2, heads, self.dim), memory=memory
            )
        return Packed(
            codes.view(tokens, 2, heads, self.dim * self.bits // 8),
            keys.view(_SCALES).view(1, heads, self.dim, 2),
            values.view(_SCALES).view(tokens, heads, 2),
            memory,
        )

    def write(self, payload: Payload, memory: Tensor) -> Packed:
        """Copy a payload into `memory`, on the same device; gives it as it lies there."""
        packed = self.payload(memory, len(payload.codes))
        for name, tensor in payload.tensors.items():
            packed.tensors[name].copy_(tensor)
        return packed

    def _parts(self, tokens: int) -> tuple[int, int, int]:
        codes = tokens * 2 * self.kv_heads * self.dim * self.bits // 8
        if self.bits == 16:
            return 0, codes, 0
        return 4 * self.kv_heads * self.dim, codes, 4 * tokens * self.kv_heads
