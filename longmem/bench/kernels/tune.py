"""Find how each kernel is best launched on this GPU, and pin it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from statistics import mean

import torch

from longmem.bench.kernels.case import Case
from longmem.bench.kernels.cases import MAKERS, cases
from longmem.bench.kernels.exploring import explore
from longmem.bench.kernels.size import TARGET
from longmem.bench.kernels.timing import milliseconds
from longmem.errors import ConfigError
from longmem.ops.kernels import DIMS, Launch, launch_of
from longmem.ops.kernels.configs import as_json, forget, launches, tried

Timer = Callable[[Case], float]


def tune(
    ops: Sequence[str] | None,
    dims: Sequence[int],
    report: Callable[[str], None],
    device: str = "cuda",
) -> None:
    """Time each op's cases, in bfloat16 at an 8B model's sizes, under launches around the pinned ones,
    and write the best to the op's `launches.json`, kernel by kernel.

    Results may change by last bits thereafter: sums are taken in another order.

    Args:
        ops: folders under `longmem.ops`; None for all that have kernels.
        dims: head dimensions.
        report: is told what was found, a line at a time.
        device: a CUDA device.

    Raises:
        ConfigError: there is no GPU, or a file may not be written to.
    """
    if not torch.cuda.is_available():
        raise ConfigError(
            "kernels are tuned on the GPU they will run on, and this machine has none"
        )
    on, wanted = torch.device(device), list(MAKERS if ops is None else ops)
    _check_writable(wanted)
    for op in wanted:
        for dim in dims:
            made = list(cases(dim, torch.bfloat16, on, TARGET, [op]))
            for kernel in dict.fromkeys(name for case in made for name in case.kernels):
                _tune_kernel(op, kernel, dim, max(dims), made, report, on)


def _tune_kernel(
    op: str,
    kernel: str,
    dim: int,
    last: int,
    made: Sequence[Case],
    report: Callable[[str], None],
    device: torch.device,
) -> None:
    """One kernel at one head dimension, over all cases that launch it."""
    if len(launches(op)[kernel]) == 1 and dim != last:
        return  # one launch serves every head dimension; the largest decides
    own = [case for case in made if kernel in case.kernels]
    pinned = launch_of(op, kernel, dim)
    wrong = [case.name for case in own if not case.right]
    if wrong:
        report(f"{op}.{kernel}, D = {dim}: left alone, wrong as it is ({', '.join(wrong)})")
        return
    cost = relative_cost(op, kernel, own, lambda case: milliseconds(case.run, device))
    best, share = explore(pinned, cost)
    report(f"{op}.{kernel}, D = {dim}: {told(best)}, {share:.2f} of the time of {told(pinned)}")
    if best != pinned:
        pin(op, kernel, dim, best)


def relative_cost(
    op: str, kernel: str, own: Sequence[Case], timer: Timer
) -> Callable[[Launch], float]:
    """The mean over cases of a launch's time to that of the first one asked about; infinite where a
    case cannot be launched so, or is wrong."""
    first: dict[int, float] = {}

    def cost(how: Launch) -> float:
        shares = []
        with tried(op, kernel, how):
            for i, case in enumerate(own):
                try:
                    if not case.right:
                        return math.inf
                    ms = timer(case)
                except Exception:  # whatever the compiler or the driver refuses
                    return math.inf
                shares.append(ms / first.setdefault(i, ms))
        return mean(shares)

    return cost


def pin(op: str, kernel: str, dim: int, how: Launch, folder: Path | None = None) -> None:
    """Write a launch to the op's `launches.json`. A kernel with one launch for every head dimension
    keeps to one; of others, no head dimension but `dim` gets another launch.

    Args:
        op, kernel, dim: as `launch_of` has them.
        how: the launch.
        folder: of the file; None for the op's own.
    """
    rows = {name: dict(by_dim) for name, by_dim in launches(op).items()}
    if len(rows[kernel]) == 1:
        rows[kernel] = dict.fromkeys(rows[kernel], how)
    else:
        rows[kernel] = {each: launch_of(op, kernel, each) for each in DIMS} | {dim: how}
    place = folder / "launches.json" if folder else _place(op)
    place.write_text(as_json(rows), "utf-8")
    forget()


def _check_writable(ops: Sequence[str]) -> None:
    """Refuse files that cannot be written before minutes of tuning, and not after them."""
    for place in map(_place, ops):
        if not os.access(place, os.W_OK):
            raise ConfigError(f"{place} may not be written to; install longmem where it may be")


def _place(op: str) -> Path:
    return Path(str(files(f"longmem.ops.{op}"))) / "launches.json"


def told(how: Launch) -> str:
    """A launch in words."""
    blocks = " ".join(f"{name}={value}" for name, value in how.blocks.items())
    limit = f", at most {how.registers} registers" if how.registers else ""
    return f"{blocks or 'no tiles'}, {how.num_warps} warps, {how.num_stages} stages{limit}"
