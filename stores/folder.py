"""The folder of a SQLiteStore: ``longmem.db``, ``files/``, ``tmp/`` and ``lock``.

Knows names, modes and the order of fsync and rename; nothing of sessions.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from longmem.errors import StoreError, StoreFormatError
from longmem.stores import turn_file
from longmem.stores.open_file import TurnFile
from longmem.stores.turn_file import FileRow, Identity

DATABASE = "longmem.db"
OPEN_FILES = 128
"""Turn files kept open; well below the 256 descriptors macOS allows a process."""
ORPHAN_AGE = 60.0
"""Seconds after which a file without a row is an orphan and not a commit in flight."""

_OURS = {DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", "files", "tmp", "lock"}


class Folder:
    """The files of one store.

    Args:
        root: the store's directory.
        create: make what is missing (a read-only store must not).

    Raises:
        StoreFormatError: `root` is a file, somebody else's directory, or a store without its
            database.
    """

    def __init__(self, root: Path, *, create: bool) -> None:
        self.root = root
        self.files = root / "files"
        self.tmp = root / "tmp"
        self._open: OrderedDict[str, TurnFile] = OrderedDict()
        self._abandoned: set[str] = set()
        self._lock = threading.Lock()
        _refuse_foreign(root, must_exist=not create)
        if create:
            self._create()

    @property
    def database(self) -> Path:
        """Path of the SQLite database."""
        return self.root / DATABASE

    def write(self, tensors: Mapping[str, Tensor], identity: Identity) -> FileRow:
        """Write a turn file durably under a random name; on failure nothing is left of it.

        Raises:
            StoreError: the disk is full or refuses.
        """
        advice = "Nothing was stored; free space or fix the disk, then commit again."
        return self.place(
            lambda path: turn_file.write(path, tensors, identity), identity.session, advice
        )

    def place(self, write: Callable[[Path], FileRow], session: str, advice: str) -> FileRow:
        """Let `write` make a file, and move it into place; on failure nothing is left of it.

        Args:
            write: writes and fsyncs a file under the given path.
            session: for the message of an error.
            advice: its last words.

        Raises:
            StoreError: the disk is full or refuses.
        """
        name = f"{secrets.token_hex(16)}.safetensors"
        try:
            row = write(self.tmp / name)
            os.rename(self.tmp / name, self.files / name)
            fsync_dir(self.files)
        except BaseException as error:
            for folder in (self.tmp, self.files):
                (folder / name).unlink(missing_ok=True)
            if isinstance(error, (OSError, SafetensorError)):
                raise StoreError(
                    f"session {session!r}: cannot write to {self.root} ({error}). {advice}"
                ) from error
            raise
        return row

    def open(self, row: FileRow) -> TurnFile:
        """The open file of a row; the files used last stay open."""
        with self._lock:
            found = self._open.get(row.name)
            if found is not None:
                self._open.move_to_end(row.name)
                return found
        opened = self.open_fresh(row)
        with self._lock:
            self._open[row.name] = opened
            while len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        return opened

    def opener(self, *, fresh: bool) -> Callable[[FileRow], TurnFile]:
        """`open`; or, `fresh`, `open_fresh` that keeps the last file at hand."""
        return lru_cache(1)(self.open_fresh) if fresh else self.open

    def open_fresh(self, row: FileRow) -> TurnFile:
        """The file as it now lies on disk, past the cache."""
        return TurnFile(self.files / row.name, row)

    def unlink(self, names: Iterable[str]) -> None:
        """Remove files durably; one that is gone already is fine.

        Raises:
            StoreError: the disk refuses.
        """
        try:
            for name in names:
                with self._lock:
                    self._open.pop(name, None)
                (self.files / name).unlink(missing_ok=True)
            fsync_dir(self.files)
        except OSError as error:
            raise StoreError(
                f"cannot remove files that no session needs from {self.files} ({error}); they go"
                " when the store is next opened for writing"
            ) from error

    def abandon(self, name: str) -> None:
        """Note a file whose transaction failed; `sweep` removes it.

        Not at once: when COMMIT itself failed, its frames may lie complete in the write-ahead log,
        and would count after a crash. The next transaction overwrites them.
        """
        with self._lock:
            self._abandoned.add(name)

    def sweep(self, is_known: Callable[[str], bool]) -> None:
        """Remove abandoned files; call after a successful transaction. What fails stays noted.

        Args:
            is_known: whether a commit names the file after all; it stays then.
        """
        with self._lock:
            names = list(self._abandoned)
        for name in names:
            with contextlib.suppress(OSError, StoreError):
                if not is_known(name):
                    (self.files / name).unlink(missing_ok=True)
                with self._lock:
                    self._abandoned.discard(name)

    def orphans(self, known: set[str], *, age: float = 0.0) -> list[str]:
        """Names in ``files/`` that are not `known` and at least `age` seconds in place."""
        newest = time.time() - age
        found: list[str] = []
        for entry in os.scandir(self.files) if self.files.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                # ctime, because the rename into files/ sets it: mtime may be an fsync older.
                if entry.name not in known and entry.stat().st_ctime <= newest:
                    found.append(entry.name)
        return sorted(found)

    def refuse_if_used(self) -> None:
        """For a database without tables: it must not come to files it knows nothing of.

        Raises:
            StoreFormatError: there are turn files; an empty database would have them all deleted.
        """
        if any(os.scandir(self.files)):
            raise StoreFormatError(
                f"the store {self.root} has turn files but its {DATABASE} is missing or empty;"
                f" restore {DATABASE} and, if there is one, {DATABASE}-wal"
            )

    def clear_tmp(self) -> None:
        """Remove what a crash left half-written."""
        for entry in os.scandir(self.tmp):
            os.unlink(entry.path)

    def close(self) -> None:
        """Let go of all open files."""
        with self._lock:
            self._open.clear()

    def _create(self) -> None:
        try:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self.root, self.files, self.tmp):
                folder.mkdir(mode=0o700, exist_ok=True)
                folder.chmod(0o700)
            fsync_dir(self.root)
            fsync_dir(self.root.parent)
        except OSError as error:
            raise StoreError(
                f"cannot write to {self.root} ({error}); choose another path, or open the store"
                " with read_only=True"
            ) from error


def fsync_dir(path: Path) -> None:
    """Make renames and removals in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _refuse_foreign(root: Path, *, must_exist: bool) -> None:
    if not root.exists():
        if must_exist:
            raise StoreFormatError(f"there is no longmem store at {root}; check the path")
        return
    if not root.is_dir():
        raise StoreFormatError(f"{root} is a file; a longmem store is a directory")
    if _has_database(root):
        return
    names = {entry.name for entry in os.scandir(root)}
    if names - _OURS:
        raise StoreFormatError(f"{root} is no longmem store; choose a new or empty directory")
    if must_exist:
        raise StoreFormatError(f"there is no longmem store at {root}; check the path")


def _has_database(root: Path) -> bool:
    path = root / DATABASE
    return path.is_file() and path.stat().st_size > 0
