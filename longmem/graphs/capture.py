"""A step that is run once and again: as a CUDA graph, or, where there is none, as it is."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any, Generic, TypeVar

import torch

from longmem.graphs.waits import NoWaits

T = TypeVar("T")
Pool = Any
"""What `torch.cuda.graph_pool_handle` gives: memory that graphs share; None: a graph's own."""
_WARM_UP = 2
"""Further runs before the capture: kernels are compiled in them, and libraries set up."""


class Captured(Generic[T]):
    """Work that always does the same with the same memory.

    On a CUDA device it is captured once; `run` launches all of it at once then, on the current stream.
    Elsewhere `run` does the work. What the capture allocates lies in `pool` until the object is gone.

    Args:
        work: waits for nothing, and keeps to one device; called a few times before it is captured.
        device: where.
        pool: for graphs that never run at the same time; what one gives is good until another one of
            the pool runs.
        trial: what is looked at for waits in place of `work`: torch compiles nothing while it is
            looked at, nor later what it was asked to meanwhile.

    Raises:
        RuntimeError: the work cannot be captured, for instance because it waits for the device.
    """

    def __init__(
        self,
        work: Callable[[], T],
        device: torch.device,
        pool: Pool,
        trial: Callable[[], object] | None = None,
    ) -> None:
        self._work = work
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            with torch.cuda.device(device):
                self._capture(device, pool, trial or work)

    def run(self) -> T:
        """Do the work; what it returned, whose tensors the next run writes over."""
        if self._graph is None:
            return self._work()
        self._graph.replay()
        return self._result

    def _capture(self, device: torch.device, pool: Pool, trial: Callable[[], object]) -> None:
        aside, now = _stream(device), torch.cuda.current_stream(device)
        with _capturing:  # torch captures one graph at a time
            aside.wait_stream(now)
            with torch.cuda.stream(aside):
                with NoWaits(device):
                    trial()
                for _ in range(_WARM_UP):
                    self._work()
            now.wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            options = {"stream": aside, "pool": pool, "capture_error_mode": "thread_local"}
            try:
                # other threads may allocate meanwhile
                with _uncollected(), torch.cuda.graph(graph, **options):
                    self._result = self._work()
            except BaseException:
                torch.cuda.set_stream(now)  # torch leaves its own, where a capture cannot begin
                raise
        self._graph = graph


_capturing = Lock()


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Where graphs of a device are warmed up and captured: libraries then have their memory for that
    stream before a capture begins, and it is not taken from the graphs'."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch gives no types


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection: what it let go of might call on the device, which a capture forbids."""
    gc.collect()
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
