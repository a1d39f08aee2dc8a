"""Copies between host and device beside the computation, one after the other in each direction.

Nothing here waits for the device but a host that reads what comes from it. A copy begins when what the
device was given to compute so far is done: its source is then written, and its target no longer read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from threading import RLock
from typing import Literal, Protocol

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
"""Target and source of a copy, both contiguous and of one dtype and shape."""
Direction = Literal["in", "out"]
"""Host to device, device to host."""


class Event(Protocol):
    """A point in what a device does."""

    def query(self) -> bool:
        """Whether it was reached."""

    def synchronize(self) -> None:
        """Wait on the host until it is."""


class Lanes(Protocol):
    """What a device offers: one stream that computes, one for copies in each direction."""

    def mark(self) -> Event:
        """The end of what the device was given to compute so far."""

    def copy(self, direction: Direction, pairs: Sequence[Pair], after: Sequence[Event]) -> Event:
        """Copy when `after` is reached; gives the end of it."""

    def hold(self, event: Event) -> None:
        """What will be computed from now on waits for `event`."""


class Transfers:
    """What is under way between the host and one device.

    A tensor under way is known by its address. Tensors are kept until nothing uses them any more, so
    that their memory is not given to others before.

    Args:
        lanes: the device's streams.
    """

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._under_way: dict[int, Event] = {}  # by the address of the target
        self._kept: dict[str, deque[tuple[Event, Sequence[Tensor]]]] = {}
        self._lock = RLock()

    def bring(self, pairs: Sequence[Pair]) -> None:
        """Begin to copy from the host to the device."""
        self._start("in", pairs)

    def send(self, pairs: Sequence[Pair]) -> None:
        """Begin to copy from the device to the host."""
        self._start("out", pairs)

    def await_on_device(self, tensors: Iterable[Tensor]) -> None:
        """Let what will be computed from now on find the copies into these tensors done."""
        with self._lock:
            for event in self._pending(tensors):
                self._lanes.hold(event)

    def await_all_on_device(self) -> None:
        """As `await_on_device`, of whatever is under way."""
        with self._lock:
            self._prune()
            for event in {id(event): event for event in self._under_way.values()}.values():
                self._lanes.hold(event)

    def await_on_host(self, tensors: Iterable[Tensor]) -> None:
        """Wait until the copies into these tensors are done: the host is about to read them."""
        with self._lock:
            events = self._pending(tensors)
        for event in events:
            event.synchronize()

    def keep(self, tensors: Sequence[Tensor]) -> None:
        """Keep these until what was given to the device so far, which reads them, is done."""
        if tensors:
            with self._lock:
                self._keep("computing", self._lanes.mark(), tensors)
                self._prune()

    def _start(self, direction: Direction, pairs: Sequence[Pair]) -> None:
        if not pairs:
            return
        with self._lock:
            after = [self._lanes.mark(), *self._pending(source for _, source in pairs)]
            event = self._lanes.copy(direction, pairs, after)
            self._keep(direction, event, [tensor for pair in pairs for tensor in pair])
            self._under_way.update((target.data_ptr(), event) for target, _ in pairs)
            self._prune()

    def _pending(self, tensors: Iterable[Tensor]) -> list[Event]:
        """The ends of the copies into these tensors, each once."""
        if not self._under_way:
            return []
        found = (self._under_way.get(tensor.data_ptr()) for tensor in tensors)
        return list({id(event): event for event in found if event is not None}.values())

    def _keep(self, why: str, event: Event, tensors: Sequence[Tensor]) -> None:
        self._kept.setdefault(why, deque()).append((event, tensors))

    def _prune(self) -> None:
        """Let go of what is done; in each stream the oldest is done first."""
        for waiting in self._kept.values():
            while waiting and waiting[0][0].query():
                event, tensors = waiting.popleft()
                for address in {tensor.data_ptr() for tensor in tensors}:
                    if self._under_way.get(address) is event:
                        del self._under_way[address]


class _Done:
    """An event that lies behind."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        return


class HostLanes:
    """The CPU as device: copies are done at once."""

    def mark(self) -> Event:
        return _Done()

    def copy(self, direction: Direction, pairs: Sequence[Pair], after: Sequence[Event]) -> Event:
        for target, source in pairs:
            target.copy_(source)
        return _Done()

    def hold(self, event: Event) -> None:
        return


class CudaLanes:
    """A GPU: the thread's current stream computes, two of its own copy.

    Args:
        device: with its index.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams = {
            direction: torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch gives it no types
            for direction in ("in", "out")
        }

    def mark(self) -> Event:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch gives it no types
        event.record(torch.cuda.current_stream(self._device))
        return event

    def copy(self, direction: Direction, pairs: Sequence[Pair], after: Sequence[Event]) -> Event:
        stream = self._streams[direction]
        for event in after:
            event.wait(stream)  # type: ignore[attr-defined]  # torch.cuda.Event
        with torch.cuda.stream(stream):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch gives it no types
        done.record(stream)
        return done

    def hold(self, event: Event) -> None:
        event.wait(torch.cuda.current_stream(self._device))  # type: ignore[attr-defined]  # as above


_of: dict[torch.device, Transfers] = {}
_making = RLock()


def transfers_of(device: torch.device) -> Transfers:
    """The transfers of a device, the same for all layers and sessions."""
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    with _making:
        if device not in _of:
            _of[device] = Transfers(CudaLanes(device) if device.type == "cuda" else HostLanes())
        return _of[device]
