"""A pretended device whose copies are made as late as its promises allow."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from weakref import ref

import torch
from torch import Tensor

from longmem.memory.transfers import Direction, Event, Pair


class LateEvent:
    """The end of one copy; `of` is the direction's queue, None where there is nothing to wait for."""

    def __init__(self, of: deque[LateCopy] | None = None) -> None:
        self.of = of
        self.done = of is None
        self.waits = 0

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.waits += 1
        while not self.done:
            assert self.of is not None
            self.of.popleft().run()

    wait = synchronize


class LateCopy:
    """Copies that nobody waited for so far. A device holds no tensors: whoever began the copy has to."""

    def __init__(self, pairs: Sequence[Pair], after: Sequence[LateEvent], end: LateEvent) -> None:
        self._pairs = [(ref(target), ref(source)) for target, source in pairs]
        self.after, self.end = after, end

    @property
    def pairs(self) -> list[Pair]:
        """Targets and sources."""
        pairs = [(target(), source()) for target, source in self._pairs]
        kept = all(each is not None for pair in pairs for each in pair)
        assert kept, "a tensor was let go before its copy was done"
        return pairs  # type: ignore[return-value]  # checked just now

    def run(self) -> None:
        for event in self.after:
            event.synchronize()
        for target, source in self.pairs:
            target.copy_(source)
        self.end.done = True


class LateLanes:
    """Copies wait until somebody waits for them, each direction in its order; whoever reads a target too
    early finds all its bits set: NaN."""

    def __init__(self) -> None:
        self.queues: dict[str, deque[LateCopy]] = {"in": deque(), "out": deque()}
        self.copies = 0

    def mark(self) -> Event:
        return LateEvent()

    def copy(self, direction: Direction, pairs: Sequence[Pair], after: Sequence[Event]) -> Event:
        queue = self.queues[direction]
        end = LateEvent(queue)
        for target, _ in pairs:
            poison(target)
        queue.append(LateCopy(pairs, after, end))  # type: ignore[arg-type]
        self.copies += len(pairs)
        return end

    def hold(self, event: Event) -> None:
        event.synchronize()


def poison(tensor: Tensor) -> None:
    """Set all bits."""
    if tensor.numel():
        tensor.reshape(-1).view(torch.uint8).fill_(255)
