"""Buffers that one decode step after the other computes in."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Scratch:
    """Uninitialised memory by name, allocated when it is first asked for or must grow.

    What lies in a buffer is lost when its name is asked for again. For one thread at a time.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}
        self._views: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        return sum(memory.nbytes for memory in self._memory.values())

    def take(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """A contiguous buffer of this shape.

        Args:
            name: what it is for; two buffers in use at a time need two names.
            shape, dtype, device: of the buffer.
        """
        key = (name, dtype, device)
        view = self._views.get(key)
        if view is not None and view.shape == shape:
            return view
        size = math.prod(shape)
        memory = self._memory.get(key)
        if memory is None or memory.numel() < size:
            memory = torch.empty(1 << max(size - 1, 1).bit_length(), dtype=dtype, device=device)
            self._memory[key] = memory
        view = self._views[key] = memory[:size].view(shape)
        return view

    def upload(self, name: str, values: Tensor, device: torch.device) -> Tensor:
        """Values of the host on a device, in a buffer as `take` gives it; nothing waits for the copy.

        Args:
            name: what it is for.
            values: on the CPU; they may change after the call.
            device: where they go.
        """
        target = self.take(name, tuple(values.shape), values.dtype, device)
        if device.type == "cuda":
            # Pinned memory is given out again only when the copies that read it are through.
            pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            values = pinned.copy_(values)
        return target.copy_(values, non_blocking=True)
