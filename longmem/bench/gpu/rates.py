"""What the device can do at best, measured in the same run: the floors of everything else."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from longmem.bench.gpu.clock import median_ms
from longmem.bench.gpu.shapes import Shape

_DRAWN = 1 << 24
"""Bytes of randomness, repeated: constant data may be copied faster than real data is."""


@dataclass(frozen=True)
class Rates:
    """Bytes and operations per second.

    Args:
        copy: bytes read plus bytes written by a copy on the device.
        matrix: multiplications plus additions of a product of two square matrices in `dtype`.
        link: bytes from pinned host memory to the device; None on a CPU.
        copied: bytes of the copy, one way.
        matrix_size: rows and columns of the matrices.
        dtype: of the product.
    """

    copy: float
    matrix: float
    link: float | None
    copied: int
    matrix_size: int
    dtype: str

    def floor_ms(self, nbytes: float, flops: float, linked: float = 0) -> float:
        """The least time for so many bytes of device memory, operations, and bytes over the link."""
        over_link = linked / self.link if self.link else 0.0
        return 1000 * max(nbytes / self.copy, flops / self.matrix, over_link)

    def row(self) -> dict[str, object]:
        """JSON-able."""
        return asdict(self)


def measure_rates(shape: Shape, device: torch.device, dtype: torch.dtype) -> Rates:
    """Copy a few GB, multiply two large matrices, and fetch from pinned host memory."""
    return Rates(
        copy=_copy(shape.copy_bytes, device),
        matrix=_matrix(shape.matrix, device, dtype),
        link=_link(shape.copy_bytes // 8, device) if device.type == "cuda" else None,
        copied=shape.copy_bytes,
        matrix_size=shape.matrix,
        dtype=str(dtype).removeprefix("torch."),
    )


def _copy(nbytes: int, device: torch.device) -> float:
    """Bytes read and written per second by a copy on the device."""
    source = _bytes(nbytes, device)
    target = torch.empty_like(source)
    return 2000 * nbytes / median_ms(lambda: target.copy_(source), device)


def _matrix(n: int, device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a product of two ``[n, n]`` matrices."""
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2000 * n**3 / median_ms(lambda: torch.mm(a, b, out=out), device)


def _link(nbytes: int, device: torch.device) -> float:
    """Bytes per second from pinned host memory to the device."""
    pinned = _bytes(nbytes, torch.device("cpu")).pin_memory()
    target = torch.empty(nbytes, dtype=torch.uint8, device=device)
    return 1000 * nbytes / median_ms(lambda: target.copy_(pinned, non_blocking=True), device)


def _bytes(n: int, device: torch.device) -> torch.Tensor:
    few = torch.randint(0, 256, (min(n, _DRAWN),), dtype=torch.uint8, device=device)
    return few.repeat(-(-n // len(few)))[:n]
