"""The cases of every op: what tuning times, and what the roofline table shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch

from longmem.bench.kernels.case import Case
from longmem.bench.kernels.cases import (
    block_gather,
    block_scoring,
    compressive,
    step_attention,
    working_set_attention,
)
from longmem.bench.kernels.size import TARGET, Size

MAKERS: Mapping[str, Callable[[Size, int, torch.dtype, torch.device], Iterator[Case]]] = {
    "block_gather": block_gather.cases,
    "block_scoring": block_scoring.cases,
    "compressive": compressive.cases,
    "step_attention": step_attention.cases,
    "working_set_attention": working_set_attention.cases,
}
"""By op, what makes its cases one after the other."""


def cases(
    dim: int,
    dtype: torch.dtype,
    device: torch.device,
    size: Size = TARGET,
    ops: Iterable[str] | None = None,
) -> Iterator[Case]:
    """All cases, each made when it is asked for: let go of one before the next where memory is short.

    Args:
        dim: D.
        dtype: of queries, keys and values.
        device: where they lie.
        size: how large they are.
        ops: folders under `longmem.ops`; None for all that have kernels.
    """
    for op in MAKERS if ops is None else ops:
        yield from MAKERS[op](size, dim, dtype, device)
