"""How long a call takes on a GPU that has read other things meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch

_FLUSH_BYTES = 256 << 20
"""Written between two calls: more than any second-level cache holds."""


def milliseconds(
    run: Callable[[], object], device: torch.device, times: int = 20, graph: bool = True
) -> float:
    """Median time of a call between two CUDA events, with the second-level cache emptied before it, as
    it is for a layer that comes after 31 others.

    Args:
        run: the call; it waits for nothing.
        device: a CUDA device.
        times: how often it is timed.
        graph: capture it in a CUDA graph first, so that the host's share is not counted.
    """
    with torch.cuda.device(device):
        call = _captured(run) if graph else run
        call()
        other = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)
        spans = [_span(call, other) for _ in range(times)]
        torch.cuda.synchronize()
        return float(median(start.elapsed_time(stop) for start, stop in spans))


def _captured(run: Callable[[], object]) -> Callable[[], object]:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch gives none
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()  # compiles, and sizes what it computes in
        run()
    torch.cuda.current_stream().wait_stream(side)
    made = torch.cuda.CUDAGraph()
    with torch.cuda.graph(made):
        run()
    return made.replay


def _span(
    call: Callable[[], object], other: torch.Tensor
) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch gives none
    stop = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch gives none
    other.zero_()
    start.record()
    call()
    stop.record()
    return start, stop
