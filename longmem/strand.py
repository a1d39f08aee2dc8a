"""One thread of work among those an engine reads for: it goes on pass by pass."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Generic, TypeVar

import torch

from longmem.feeding import Fed, Request

T = TypeVar("T")
Steps = Generator[Request, Sequence[Fed], None]
"""Yields what is to be read next, and gets what came of each feed of the pass. If it gets nothing,
nothing was read yet: it may think again."""


class StrandCancelled(Exception):
    """The strand was cancelled; its owner has to undo what it read."""


class StrandInPass(RuntimeError):
    """The strand cannot leave now, and whoever wants it to cannot wait."""


class Strand(Generic[T]):
    """The steps of one reply, or of one read, and what they brought so far.

    Whichever thread runs a pass advances the strands in it; what they bring waits here for the
    owner. One that does not fetch it is left out of further passes until it does.

    Args:
        steps: makes the steps, from a function that hands the owner something.
        whole: the owner waits for the end, and wants nothing before.
    """

    AHEAD = 4
    """Pieces a strand may be ahead of its owner: enough for the owner to come back meanwhile."""

    def __init__(self, steps: Callable[[Callable[[T], None]], Steps], whole: bool = False) -> None:
        self.brought: deque[T] = deque()
        self.whole = whole
        self.request: Request | None = None
        """What it wants read next; None once it is over."""
        self.error: BaseException | None = None
        self.cancelled = False
        self.in_pass = False
        self.wake = threading.Event()
        self.inference = torch.is_inference_mode_enabled()
        """Tensors made in that mode cannot be changed outside it: passes keep the two apart."""
        self._steps = steps(self._bring)
        self._advance(lambda: next(self._steps))

    @property
    def over(self) -> bool:
        """Whether no pass will bring anything more."""
        return self.cancelled or self.request is None

    @property
    def ready(self) -> bool:
        """Whether the owner has something to fetch, or nothing to wait for."""
        return self.over or (not self.whole and bool(self.brought))

    @property
    def wants_pass(self) -> bool:
        """Whether the next pass may take it in."""
        return not (self.over or self.in_pass or len(self.brought) >= self.AHEAD)

    def advance(self, fed: Sequence[Fed | BaseException]) -> None:
        """Take what a pass brought, and go on to the next request; an error ends the strand."""
        for each in fed:
            if isinstance(each, BaseException):
                self.fail(each)
                return
        self._advance(lambda: self._steps.send([each for each in fed if isinstance(each, Fed)]))

    def fail(self, error: BaseException) -> None:
        """End here; the owner gets the error."""
        self.error, self.request = error, None

    def close(self) -> None:
        """Let go of the steps."""
        self._steps.close()

    def _advance(self, step: Callable[[], Request]) -> None:
        try:
            self.request = step()
        except StopIteration:
            self.request = None
        except BaseException as error:
            self.fail(error)

    def _bring(self, piece: T) -> None:
        if not self.whole:
            self.brought.append(piece)
