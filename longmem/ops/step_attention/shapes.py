"""What the kernels of a step are compiled for."""

from __future__ import annotations

from dataclasses import dataclass

import triton

from longmem.ops.kernels import launch_of
from longmem.ops.working_set_attention.attended import MassOf

OP = "step_attention"
_SMALLEST_TILE = 16
"""Rows that a tensor core multiplies at least."""


@dataclass(frozen=True)
class Shape:
    """The heads of a layer.

    Args:
        kv_heads, group, dim: H_kv, query heads per KV head, D.
    """

    kv_heads: int
    group: int
    dim: int

    @property
    def splits(self) -> int:
        """Shares the keys of one KV head are cut into: as many programs per session, whatever the
        number of heads. It must not depend on anything that changes while a session lives."""
        programs = launch_of(OP, "attend", self.dim).blocks["PROGRAMS"]
        return max(1, programs // self.kv_heads)

    @property
    def rows(self) -> int:
        """The head group as tiles have it: a power of two."""
        return int(triton.next_power_of_2(self.group))

    @property
    def heads(self) -> dict[str, int]:
        """Constants of all kernels."""
        pad = int(triton.next_power_of_2(self.dim))
        return dict(KV_HEADS=self.kv_heads, GROUP=self.group, DIM=self.dim, PAD=pad)


@dataclass(frozen=True)
class Wanted:
    """What is attended to, how, and what comes of it besides the output.

    Args:
        appended, pending, mass_of, weights: as in `stepping.attend_places`.
        softcap, sinks: whether there is one, and are some.
    """

    appended: int
    pending: bool
    softcap: bool
    sinks: bool
    mass_of: MassOf | None
    weights: bool

    @property
    def logits(self) -> int:
        """Which logits the second kernel reads: 0 none, 1 those of the window, 2 all."""
        return 2 if self.weights else int(self.mass_of == "attention")

    def attend(self, shape: Shape) -> dict[str, int]:
        """Constants of `kernel.attend_share`."""
        return shape.heads | dict(
            ROWS=max(_SMALLEST_TILE, shape.rows),
            APPENDED=self.appended,
            PENDING=self.pending,
            SOFTCAP=self.softcap,
            SUM_LOGITS=self.mass_of == "logits",
            KEEP=self.logits,
        )

    def finish(self, shape: Shape) -> dict[str, int]:
        """Constants of `finishing.finish`."""
        return shape.heads | dict(
            ROWS=shape.rows,
            SPLITS=shape.splits,
            SHARES=int(triton.next_power_of_2(shape.splits)),
            APPENDED=self.appended,
            PENDING=self.pending,
            SINKS=self.sinks,
            SUM_WEIGHTS=self.mass_of == "attention",
            WEIGHTS=self.weights,
        )


def take_in_constants(shape: Shape, half: int, interleaved: bool) -> dict[str, int]:
    """Constants of `taking_in.take_in_token` where `half` pairs of dimensions are rotated."""
    return shape.heads | dict(ROWS=shape.rows, HALF=half, INTERLEAVED=interleaved)
