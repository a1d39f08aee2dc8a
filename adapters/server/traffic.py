"""Which requests are under way, whose they are, and whether more are taken."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from longmem.adapters.server.errors import AGAIN, ApiError


class Traffic:
    """Counts requests; only touched by the event loop's thread, the flag `draining` apart."""

    def __init__(self) -> None:
        self.draining = False
        """Whether the server is about to stop: no new request is taken."""
        self.droppable: set[Callable[[], None]] = set()
        """One call for each exchange under way, which ends it."""
        self._running: Counter[str | None] = Counter()
        self._buckets: dict[str | None, tuple[float, float]] = {}

    @property
    def running(self) -> int:
        """Requests under way."""
        return sum(self._running.values())

    def enter(self, owner: str | None, most: int, rate: float | None) -> None:
        """A request of `owner` begins.

        Args:
            most: requests the owner may have under way.
            rate: requests the owner may begin per minute.

        Raises:
            ApiError: 503 while draining, 429 above a limit; then it is not counted.
        """
        if self.draining:
            raise shutting_down()
        if self._running[owner] >= most:
            raise _too_many(
                "concurrency_limit_exceeded",
                f"{most} requests with this key are under way, which is the limit; wait for one",
                0.25,
            )
        if rate is not None:
            self._draw(owner, rate)
        self._running[owner] += 1

    def leave(self, owner: str | None) -> None:
        """A request of `owner` is over."""
        self._running[owner] -= 1
        if not self._running[owner]:
            del self._running[owner]

    def drop(self) -> None:
        """End all exchanges; nothing of them is committed."""
        for end in tuple(self.droppable):
            end()

    def _draw(self, owner: str | None, rate: float) -> None:
        """Take one from the owner's bucket, which holds a minute's requests and fills steadily."""
        now, most = time.monotonic(), max(1.0, rate)
        left, at = self._buckets.get(owner, (most, now))
        left = min(most, left + (now - at) * rate / 60)
        if left < 1:
            raise _too_many(
                "rate_limit_exceeded",
                f"more than {rate:g} requests a minute with this key; come again a little later",
                (1 - left) * 60 / rate,
            )
        self._buckets[owner] = (left - 1, now)


def shutting_down() -> ApiError:
    """What is told from SIGTERM on."""
    message = "the server is shutting down; try again soon"
    return ApiError(503, "shutting_down", message, headers=AGAIN)


def _too_many(code: str, message: str, seconds: float) -> ApiError:
    milliseconds = max(1, round(seconds * 1000))
    headers = {
        "retry-after-ms": str(milliseconds),
        "retry-after": str(-(-milliseconds // 1000)),
        "x-should-retry": "true",
    }
    return ApiError(429, code, message, headers=headers)
