"""How each kernel is launched: pinned per shape in a file of its op, never chosen at run time.

Block sizes and splits decide the order in which floating-point sums are taken. Were they tuned while
a process runs, a resumed session could differ by a last bit from one that never stopped; so tuning
(`longmem bench gpu --tune`) writes each op's `launches.json`, and everything else reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Launch:
    """How one kernel is launched.

    Args:
        blocks: its tile sizes and splits, by the name of the kernel's constexpr.
        num_warps: warps per program.
        num_stages: depth of the pipelined loads.
        registers: most registers of one thread; None leaves them to the compiler.
    """

    blocks: Mapping[str, int] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2
    registers: int | None = None

    @property
    def options(self) -> dict[str, int]:
        """What the compiler is told."""
        told = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return told if self.registers is None else {**told, "maxnreg": self.registers}


Launches = Mapping[str, Mapping[int, Launch]]
"""By kernel and head dimension."""


def launch_of(op: str, kernel: str, dim: int) -> Launch:
    """The pinned launch of a kernel.

    Args:
        op: its folder under `longmem.ops`.
        kernel: its name in the op's `launches.json`.
        dim: D; a head dimension the file does not have takes the next larger one's.
    """
    return _tried.get((op, kernel)) or _pinned(op, kernel, dim)


@contextmanager
def tried(op: str, kernel: str, how: Launch) -> Iterator[None]:
    """Launch a kernel otherwise than pinned, at every head dimension, while this lasts: for tuning,
    which runs nothing beside itself.

    Args:
        op, kernel: as in `launch_of`.
        how: its launch.
    """
    before = _tried.get((op, kernel))
    _tried[op, kernel] = how
    try:
        yield
    finally:
        if before is None:
            del _tried[op, kernel]
        else:
            _tried[op, kernel] = before


_tried: dict[tuple[str, str], Launch] = {}


@cache
def _pinned(op: str, kernel: str, dim: int) -> Launch:
    by_dim = launches(op)[kernel]
    return by_dim[min(d for d in by_dim if d >= dim)]


@cache
def launches(op: str) -> Launches:
    """All pinned launches of an op."""
    text = files(f"longmem.ops.{op}").joinpath("launches.json").read_text("utf-8")
    return {
        kernel: {int(dim): Launch(**row) for dim, row in by_dim.items()}
        for kernel, by_dim in json.loads(text).items()
    }


def forget() -> None:
    """Read the files again when a launch is next asked for: one was written."""
    launches.cache_clear()
    _pinned.cache_clear()


def as_json(made: Launches) -> str:
    """The text of a `launches.json`."""
    rows = {
        kernel: {str(dim): _row(how) for dim, how in sorted(by_dim.items())}
        for kernel, by_dim in sorted(made.items())
    }
    return json.dumps(rows, indent=1) + "\n"


def _row(how: Launch) -> dict[str, object]:
    row = {"blocks": dict(how.blocks), "num_warps": how.num_warps, "num_stages": how.num_stages}
    return row if how.registers is None else {**row, "registers": how.registers}
