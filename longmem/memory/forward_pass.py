"""One forward pass over the packed tokens of several sessions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longmem.memory.reading import AttentionCall, Reading
from longmem.memory.session_memory import SessionMemory


class ForwardPass:
    """Routes each layer's packed queries, keys and values to the sessions they belong to.

    Args:
        parts: per session its memory and what it reads, in the order in which tokens are packed.
    """

    def __init__(self, parts: Sequence[tuple[SessionMemory, Reading]]) -> None:
        self.parts = parts

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """Attention of one layer.

        Args:
            layer: its number.
            q: ``[1, H, sum T, D]`` un-rotated queries of all sessions' tokens.
            k, v: ``[1, H_kv, sum T, D]`` their keys and values.
            call: the layer's attention settings.

        Returns:
            ``[1, sum T, H, D]``.
        """
        if len(self.parts) == 1:
            memory, reading = self.parts[0]
            out = memory.read_layer(layer, q[0], k[0], v[0], reading, call)
            return out.transpose(0, 1).unsqueeze(0)
        result, start = torch.empty_like(q.transpose(1, 2)), 0
        for memory, reading in self.parts:
            part = slice(start, start + reading.tokens)
            start = part.stop
            out = memory.read_layer(
                layer, q[0, :, part], k[0, :, part], v[0, :, part], reading, call
            )
            result[0, part] = out.transpose(0, 1)
        return result

    def finish(self) -> None:
        """All layers are through."""
        for memory, reading in self.parts:
            memory.advance(reading)
