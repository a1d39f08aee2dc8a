"""The lock that makes one process at a time the writer of a store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from longmem.errors import StoreError, StoreLockedError

try:
    import fcntl
except ImportError as error:
    raise ImportError(
        "longmem.stores needs POSIX file locks (fcntl), which this platform lacks; use Linux, macOS"
        " or the Windows Subsystem for Linux"
    ) from error


class WriterLock:
    """Holds ``flock`` on a file; the kernel drops it when the process dies, however it dies.

    Raises:
        StoreLockedError: another process, or another store object of this one, holds it.
    """

    def __init__(self, path: Path) -> None:
        self._file: IO[str] | None = open(  # noqa: SIM115  held for the life of the store
            path, "a+", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)
        )
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreLockedError(self._held_message(path)) from None
        except OSError as error:
            raise StoreError(f"{path}: the file system has no locks ({error.strerror})") from error
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def release(self) -> None:
        """Let the next writer in. Closes rather than unlocks: a forked child that closes its copy
        must not unlock the parent's."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _held_message(self, path: Path) -> str:
        assert self._file is not None
        self._file.seek(0)
        pid = self._file.read().strip() or "unknown"
        self.release()
        holder = "this process" if pid == str(os.getpid()) else "another process"
        return (
            f"the store {path.parent} is being written by {holder} (pid {pid}); close it there,"
            " or open it with read_only=True"
        )
