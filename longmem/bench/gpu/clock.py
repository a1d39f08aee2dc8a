"""Time as the device counts it: CUDA events, or the clock where calls wait for their end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from statistics import median

import torch


def each_ms(calls: Iterable[Callable[[], object]], device: torch.device) -> list[float]:
    """Milliseconds of each call, one behind the other.

    On a GPU from event to event on the current stream, waited for once, at the end: a call that does
    not wait for the device is not made to.

    Args:
        calls: what is timed; each is taken when its turn has come.
        device: where they compute.
    """
    if device.type != "cuda":
        return [_by_clock(call) for call in calls]
    with torch.cuda.device(device):
        spans = [_by_events(call) for call in calls]
        torch.cuda.synchronize()
        return [start.elapsed_time(stop) for start, stop in spans]


def once_ms(call: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call that may take long."""
    return each_ms([call], device)[0]


def median_ms(
    call: Callable[[], object], device: torch.device, times: int = 10, warm: int = 2
) -> float:
    """Median of several calls, after a few that are not counted."""
    for _ in range(warm):
        call()
    return median(each_ms([call] * times, device))


def _by_clock(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def _by_events(call: Callable[[], object]) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch gives no types
    start.record()
    call()
    stop.record()
    return start, stop
