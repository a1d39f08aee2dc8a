"""How near each op comes to the least time its bytes and operations take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch

from longmem.bench.chat_stream import Report, silent
from longmem.bench.gpu.budget import Budget
from longmem.bench.gpu.clock import median_ms
from longmem.bench.gpu.plan import Plan
from longmem.bench.gpu.rates import Rates
from longmem.bench.gpu.trust import Trust
from longmem.bench.kernels.case import Case
from longmem.bench.kernels.cases import cases
from longmem.bench.kernels.timing import milliseconds

_CASE_S = 3.0
"""Seconds that a case is expected to take, compiling included."""


@dataclass(frozen=True)
class Roofline:
    """One op at one shape.

    Args:
        op, name, shape, dim: as `longmem.bench.kernels.case.Case` has them.
        bytes, flops: the least that must be moved and computed.
        linked: of the bytes, those that come from host memory.
        floor_ms: the least time that takes at the measured rates.
        ms: measured, the second-level cache emptied before; None where it was not.
        why: it was not.
    """

    op: str
    name: str
    shape: str
    dim: int
    bytes: int
    flops: int
    linked: int
    floor_ms: float
    ms: float | None
    why: str = ""

    @property
    def share(self) -> float | None:
        """Of the floor in the time it took: 1 is as fast as can be."""
        return None if self.ms is None else self.floor_ms / self.ms

    def row(self) -> dict[str, object]:
        """JSON-able."""
        return {**asdict(self), "share": self.share}


def measure_roofline(
    plan: Plan,
    rates: Rates,
    trust: Trust,
    budget: Budget,
    report: Report = silent,
    make: Callable[..., Iterator[Case]] = cases,
) -> Iterator[Roofline]:
    """Every case of the shape's sizes; those of ops that failed their comparison without a time."""
    shape, device = plan.shape, plan.device
    for case in make(shape.dim, torch.bfloat16, device, shape.size, plan.ops):
        ms, why = None, ""
        if trust.op_is_wrong(case.op):
            why = "its comparison with the twin failed"
        elif not budget.allows(f"{case.op}: {case.name}", 0 if plan.interpreted else _CASE_S):
            why = "no time was left"
        else:
            try:
                ms = _timed(case, device)
            except RuntimeError as error:
                why = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        linked = int(getattr(case, "linked", 0))
        floor = rates.floor_ms(case.bytes, case.flops, linked)
        report(f"{case.op}, {case.name}: {why or f'{ms:.3f} ms, floor {floor:.3f}'}")
        yield Roofline(
            case.op, case.name, case.shape, case.dim, case.bytes, case.flops, linked, floor, ms, why
        )


def _timed(case: Case, device: torch.device) -> float:
    if device.type == "cuda":
        return milliseconds(case.run, device)
    return median_ms(case.run, device, times=1, warm=0)
