"""Where a layer's closed blocks lie on the host, and how they get there and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longmem.memory.arena import arena
from longmem.memory.spec import LayerSpec
from longmem.memory.transfers import transfers_of


class HostMemory:
    """Host memory beside the model's.

    Where the model computes on the CPU, without kernels, both are one, and nothing is copied. Else
    blocks lie in an arena, pinned for a GPU, and go there while the device computes on.

    Args:
        spec: the layer.
    """

    def __init__(self, spec: LayerSpec) -> None:
        on_gpu = spec.device.type == "cuda"
        self.apart = on_gpu or spec.kernels
        """Whether it is another memory than the model's."""
        self._arena = arena(on_gpu) if self.apart else None
        self._device = spec.device
        self.transfers = transfers_of(spec.device)

    def send(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Copies of contiguous tensors of the layer's device, perhaps still under way; the tensors
        themselves where there is one memory."""
        if not self.apart:
            return list(tensors)
        made = [self.room(tensor.shape, tensor.dtype) for tensor in tensors]
        self.transfers.send(list(zip(made, tensors, strict=True)))
        return made

    def hold(self, tensor: Tensor) -> Tensor:
        """A contiguous copy of a tensor that lies on the host, for example in a buffer of a file."""
        return self.room(tensor.shape, tensor.dtype).copy_(tensor)

    def on_device(self, tensor: Tensor) -> Tensor:
        """A tensor of this memory on the layer's device; nothing waits."""
        self.transfers.await_on_device([tensor])
        if not self.apart:
            return tensor
        there = tensor.to(self._device, non_blocking=True)
        self.transfers.keep([tensor])
        return there

    def read(self, tensor: Tensor) -> Tensor:
        """A tensor of this memory, when it has arrived."""
        self.transfers.await_on_host([tensor])
        return tensor

    def room(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Uninitialised memory of this shape."""
        if self._arena is None:
            return torch.empty(*shape, dtype=dtype)
        nbytes = torch.Size(shape).numel() * dtype.itemsize
        return self._arena.take(nbytes).view(dtype).view(*shape)
