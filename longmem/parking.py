"""Parks idle sessions from time to time, while there are any."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable


class Parker:
    """Calls a pool's sweep every so many seconds while sessions are held in memory.

    Args:
        sweep: a method of the pool, which is not kept alive; parks, and gives how many it parked.
        left: how many sessions are held; a method of the pool, too.
        seconds: how often; None: never.
    """

    def __init__(
        self, sweep: Callable[[], int], left: Callable[[], int], seconds: float | None
    ) -> None:
        self._sweep, self._left = weakref.WeakMethod(sweep), weakref.WeakMethod(left)
        self._seconds = seconds
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._stopped = False

    def start(self) -> None:
        """A session is held: look after it."""
        with self._lock:
            if self._seconds is None or self._stopped or self._timer is not None:
                return
            self._timer = threading.Timer(self._seconds, self._look)
            self._timer.daemon = True
            self._timer.start()

    def stop(self) -> None:
        """The pool is closed."""
        with self._lock:
            self._stopped = True
            if self._timer is not None:
                self._timer.cancel()

    def _look(self) -> None:
        sweep, left = self._sweep(), self._left()
        if sweep is None or left is None:
            return
        try:
            sweep()
        finally:
            self._timer = None
            if left():
                self.start()
