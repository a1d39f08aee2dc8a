"""One measurement of one op: what it runs, what that must cost, and whether it is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Case:
    """An op at one shape, with its inputs made.

    Args:
        op: its folder under `longmem.ops`.
        name: which of its uses, like "decode, 64 sessions".
        kernels: the kernels it launches, by their names in the op's `launches.json`.
        shape: the sizes, in words.
        dim: D.
        bytes: the least that must be read and written.
        flops: multiplications and additions.
        run: once, on the current stream; waits for nothing. A launch that is tried
            (`longmem.ops.kernels.configs.tried`) counts from one call to the next.
        error: runs it once and compares it with its twin: the greatest difference as a share of
            what is allowed, so that more than 1 is wrong. NaN, too, is wrong.
    """

    op: str
    name: str
    kernels: tuple[str, ...]
    shape: str
    dim: int
    bytes: int
    flops: int
    run: Callable[[], object]
    error: Callable[[], float]
    linked: int = 0

    @property
    def right(self) -> bool:
        """Whether it agrees with its twin."""
        return self.error() <= 1
