"""Whose tokens go into the next forward pass: continuous batching without a thread of its own."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from longmem.errors import SessionError
from longmem.feeding import Fed, Feed
from longmem.strand import Strand, StrandCancelled, StrandInPass

T = TypeVar("T")
RunPass = Callable[[Sequence[Feed]], Sequence[Fed | BaseException]]
"""Reads feeds of different memories in one pass; what came of each, or why it failed."""
Taken = list[tuple[Strand[Any], Sequence[Feed]]]
"""The strands of a pass, with what each reads in it."""

_FEW_TOKENS = 16
"""Requests this short are decode steps, which go first."""


class Scheduler:
    """Packs what sessions want read into passes, bounded by a token budget.

    Strands join and leave at any step. Of the threads that wait for their strands one leads: it runs
    passes with whatever is ready, its own strand or not, and hands the lead on when its own has
    brought what it waits for. Decode steps go first, then reading, whoever has waited longest first; a
    strand that was passed over goes first in the next pass, so that none waits for ever.

    The main thread, which Ctrl-C may interrupt anywhere, leads passes of its own strand alone.

    Args:
        run_pass: reads the feeds of one pass.
        pass_tokens: most tokens of a pass while several strands are there; one look-up span more
            where reading would wait for ever otherwise.
        alone_tokens: most tokens of a pass while there is one strand.
    """

    def __init__(self, run_pass: RunPass, pass_tokens: int, alone_tokens: int) -> None:
        self._run_pass = run_pass
        self._pass_tokens, self._alone_tokens = pass_tokens, alone_tokens
        self._state = threading.Condition()  # re-entrant: a finalizer may leave in the middle of it
        self._strands: dict[Strand[Any], None] = {}
        self._queue: dict[Strand[Any], None] = {}
        self._waiting: dict[Strand[Any], threading.Thread] = {}
        self._leader: Strand[Any] | None = None
        self._leading: int | None = None  # the thread that runs a pass
        self.passes = 0
        """Forward passes so far."""
        self.feeds = 0
        """Feeds they read; by passes, how many were packed on average."""

    @property
    def active(self) -> int:
        """Strands that are under way."""
        return len(self._strands)

    def run(self, strand: Strand[T]) -> Iterator[T]:
        """See a strand through; gives what it brings, in the caller's thread.

        Closing the iterator takes the strand out, after the pass it may be in.

        Raises:
            SessionError: this thread is in the middle of a pass, and would wait for itself.
            StrandCancelled: see `cancel`.
            BaseException: what a step of the strand raised, or its part of a pass.
        """
        if self._leading == threading.get_ident():
            strand.close()
            raise SessionError(
                "the engine was used from inside one of its own passes (a logits processor or "
                "stopping criterion); use it from another place, or another engine"
            )
        with self._state:
            if not strand.over:
                self._strands[strand] = self._queue[strand] = None
        try:
            while self._has_brought(strand):
                piece = strand.brought.popleft()
                with self._state:
                    self._enqueue(strand)
                yield piece
        finally:
            self._leave(strand)

    def cancel(self, strand: Strand[Any]) -> None:
        """End a strand from any thread: it is in no further pass, and its owner is told at once."""
        with self._state:
            strand.cancelled = True
            self._strands.pop(strand, None)
            self._queue.pop(strand, None)
            strand.wake.set()

    def nudge(self, strand: Strand[Any]) -> None:
        """Let a strand think again about what it wants next, unless it is in a pass."""
        with self._state:
            if not (strand.in_pass or strand.over):
                strand.advance(())

    def _has_brought(self, strand: Strand[Any]) -> bool:
        """Wait, or lead, until there is something to fetch; False at the end."""
        while not strand.ready:
            with self._state:
                if strand.ready:
                    break
                if self._leader is None:
                    self._leader = strand
                leads = self._leader is strand
                if not leads:
                    strand.wake.clear()
                    self._waiting[strand] = threading.current_thread()
            if leads:
                self._lead(strand)
            else:
                strand.wake.wait()
                with self._state:
                    self._waiting.pop(strand, None)
        if strand.cancelled:
            raise StrandCancelled
        if strand.brought:
            return True
        if strand.error is not None:
            raise strand.error
        return False

    def _lead(self, own: Strand[Any]) -> None:
        """Run passes until the own strand has brought something, or another should lead."""
        taken: Taken = []
        try:
            while not own.ready:
                self._pass(own, taken)
                if self._better_leader(own) is not None:
                    break
        finally:
            with self._state:
                self._settle(taken)  # again, where an interrupt cut the first time short
                self._hand_on(own)

    def _pass(self, own: Strand[Any], taken: Taken) -> None:
        """Run one pass; `taken` holds its strands until they are settled."""
        advanced = 0
        try:
            self._take(own, taken)
            fed = deque(self._run_pass([feed for _, part in taken for feed in part]))
            for strand, part in taken:
                strand.advance([fed.popleft() for _ in part])
                advanced += 1
        except BaseException as error:
            for strand, _ in taken[advanced:]:  # what they have read of the pass, nobody knows
                strand.fail(error)
            if advanced == len(taken):  # nobody is left to be told
                raise
        finally:
            self._settle(taken)

    def _take(self, own: Strand[Any], taken: Taken) -> None:
        """Choose the strands of the next pass, with what each reads in it.

        An interrupt may come between any two lines: a strand is noted before it is marked.
        """
        with self._state:
            self._leading = threading.get_ident()
            room = self._pass_tokens if len(self._strands) > 1 else self._alone_tokens
            queue = [strand for strand in tuple(self._queue) if self._serves(own, strand)]
            for strand in sorted(queue, key=lambda strand: _tokens(strand) > _FEW_TOKENS):
                request = strand.request
                part = request.within(room, strand is queue[0]) if request else ()
                if part and not strand.cancelled:
                    taken.append((strand, part))
                    strand.in_pass = True
                    room -= sum(len(feed.ids) for feed in part)
                    self._queue.pop(strand, None)
            self.passes += 1
            self.feeds += sum(len(part) for _, part in taken)

    def _settle(self, taken: Taken) -> None:
        """A pass is over: queue its strands again, and wake owners who have something to fetch.

        Doing it twice does no harm.
        """
        with self._state:
            for strand, _ in taken:
                strand.in_pass = False
            self._leading = None
            for strand, _ in taken:
                self._enqueue(strand)
                if strand.ready:
                    strand.wake.set()
            taken.clear()
            self._state.notify_all()

    def _enqueue(self, strand: Strand[Any]) -> None:
        if strand.wants_pass:
            self._queue[strand] = None

    def _hand_on(self, own: Strand[Any]) -> None:
        """Let a thread lead that waits for its strand, if there is one."""
        main = threading.main_thread()
        others = [s for s in tuple(self._waiting) if not s.ready and s is not own]
        mains = {s.inference for s in others if self._waiting.get(s) is main}
        if any(s.inference in mains and self._waiting.get(s) is not main for s in others):
            # somebody else can serve the main thread's strand together with its own
            others.sort(key=lambda strand: self._waiting.get(strand) is main)
        self._leader = self._better_leader(own) or next(iter(others), None)
        if self._leader is not None:
            self._leader.wake.set()

    def _better_leader(self, own: Strand[Any]) -> Strand[Any] | None:
        """A waiting strand that this thread cannot serve, whose owner can."""
        main = threading.main_thread()
        with self._state:
            for strand in tuple(self._waiting):
                able = self._waiting.get(strand) is not main
                if able and not (strand.ready or self._serves(own, strand)):
                    return strand
        return None

    def _serves(self, own: Strand[Any], strand: Strand[Any]) -> bool:
        """Whether this thread, whose strand is `own`, may have `strand` in its passes."""
        if threading.current_thread() is threading.main_thread():
            return strand is own
        return strand.inference == own.inference

    def _leave(self, strand: Strand[Any]) -> None:
        """Take a strand out; its memory is at rest afterwards."""
        self.cancel(strand)
        with self._state:
            self._waiting.pop(strand, None)
            if self._leader is strand:  # called to lead, but it did not come to it
                self._hand_on(strand)
            while strand.in_pass:
                if self._leading == threading.get_ident():  # a finalizer, run in the middle of it
                    raise StrandInPass("a reply was dropped in the middle of a pass that reads it")
                self._state.wait()
        strand.close()


def weakly(run_pass: RunPass) -> RunPass:
    """A bound method, without keeping its object alive: engines own their schedulers."""
    method = weakref.WeakMethod(run_pass)

    def run(feeds: Sequence[Feed]) -> Sequence[Fed | BaseException]:
        alive = method()
        assert alive is not None, "a pass outlived its engine"
        return alive(feeds)

    return run


def _tokens(strand: Strand[Any]) -> int:
    return strand.request.tokens if strand.request else 0
