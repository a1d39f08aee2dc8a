"""The time a run may take: what no longer fits is left out, and said."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Budget:
    """Seconds until nothing new is begun.

    Args:
        seconds: of the whole run.
        now: the clock.
    """

    seconds: float
    now: Callable[[], float] = time.monotonic
    left_out: list[dict[str, str]] = field(default_factory=list)
    """What was not measured, and why."""

    def __post_init__(self) -> None:
        self._started = self.now()

    @property
    def spent(self) -> float:
        """Seconds since the run began."""
        return self.now() - self._started

    @property
    def left(self) -> float:
        """Seconds that are left; below 0 when a measurement took longer than was thought."""
        return self.seconds - self.spent

    def allows(self, what: str, seconds: float) -> bool:
        """Whether so many seconds are left for `what`; it is noted where they are not."""
        if seconds <= self.left:
            return True
        self.leave_out(
            what, f"{max(self.left, 0):.0f} s were left, and it takes about {seconds:.0f} s"
        )
        return False

    def leave_out(self, what: str, why: str) -> None:
        """Note what is not measured."""
        self.left_out.append({"what": what, "why": why})
