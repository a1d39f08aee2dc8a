"""What a process holds and writes, as the operating system counts it."""

from __future__ import annotations

import os
import resource
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")
_IO = Path("/proc/self/io")


@dataclass(frozen=True)
class Resident:
    """Bytes of main memory of this process: now, and at its highest. `now` is None where the system
    tells the peak alone."""

    now: int | None
    peak: int


def resident() -> Resident:
    """As Linux has it in /proc; elsewhere the peak of getrusage."""
    if _STATUS.exists():
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        now, peak = (int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        return Resident(now, peak)
    unit = 1 if sys.platform == "darwin" else 1024
    return Resident(None, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def bytes_written() -> int | None:
    """Bytes this process has handed to write calls; None where the system does not count them."""
    with suppress(OSError):
        lines = dict(line.split(": ") for line in _IO.read_text().splitlines())
        return int(lines["wchar"])
    return None


class FilesWritten:
    """Counts the files that come into a folder by a rename, as a store's files do when they are
    complete. Those that are merged and removed later stay counted.

    It hears of them by an audit hook (PEP 578), which lasts as long as the process.

    Args:
        folder: where they are renamed to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = os.path.abspath(folder)
        self._lock = threading.Lock()
        self.sizes: list[int] = []
        """Bytes of each, in order."""
        sys.addaudithook(self._hear)

    @property
    def bytes(self) -> int:
        """Bytes of all of them."""
        return sum(self.sizes)

    def close(self) -> None:
        """Count no further."""
        self._folder = ""

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if event != "os.rename" or not self._folder:
            return
        source, target = (os.fsdecode(a) for a in arguments[:2])  # type: ignore[arg-type]  # paths
        if os.path.dirname(os.path.abspath(target)) == self._folder:
            with self._lock, suppress(OSError):
                self.sizes.append(os.stat(source).st_size)


@dataclass(frozen=True)
class OnDisk:
    """Files of a store now, their bytes, and those of its database."""

    files: int
    file_bytes: int
    database_bytes: int


def on_disk(store: Path) -> OnDisk:
    """Count the files of the store in the folder `store`."""
    sizes = []
    for entry in os.scandir(store / "files"):
        with suppress(FileNotFoundError):  # merged away meanwhile
            sizes.append(entry.stat().st_size)
    base = sum(
        path.stat().st_size for path in store.iterdir() if path.name.startswith("longmem.db")
    )
    return OnDisk(len(sizes), sum(sizes), base)


def drop_page_cache(folder: Path) -> bool:
    """Ask the system to forget what it has read of the files under `folder`; whether it can be asked."""
    advise = getattr(os, "posix_fadvise", None)
    if advise is None:
        return False
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                advise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True
