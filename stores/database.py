"""The one SQLite connection of a store, used by one thread at a time.

Some SQLite builds (3.7.0 to 3.51.2) can lose a write-ahead log that two connections reset at the
same moment. That cannot happen here, so there is no warning about it: the writer lock admits one
writing connection per store, and read-only connections never checkpoint.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlite_utils import Database as UtilsDatabase

from longmem.errors import CorruptDataError, StoreError
from longmem.stores.migrations import check_format, migrations
from longmem.stores.search_index import prepare_index

_BUSY_SECONDS = 10.0  # readers hold the database for milliseconds; ten seconds means stuck


class Database:
    """Connects, checks the format and migrates.

    Args:
        path: the database file; created with mode 0600 unless `read_only`.
        read_only: never write, not even a migration.
        before_creation: called before an empty database gets its tables; may raise.

    Raises:
        StoreFormatError: a foreign database or a newer format.
    """

    def __init__(
        self, path: Path, *, read_only: bool, before_creation: Callable[[], None] = lambda: None
    ) -> None:
        self.path = path
        self.read_only = read_only
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._connection: sqlite3.Connection | None = _connect(path, read_only)
        try:
            if check_format(self._connection, path, migrate=not read_only) == 0:
                before_creation()
            with _translated(path):
                self._utils = _prepare(self._connection, read_only)
        except BaseException:
            self._connection.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction: durable when the block ends, undone when it raises. Never nested.

        An interrupt that comes when COMMIT is through raises although it is durable.

        Raises:
            StoreError: the database refuses; the store is closed; the process was forked.
            CorruptDataError: the database file is damaged.
        """
        if os.getpid() != self._process:
            raise StoreError(
                f"{self.path} was opened before a fork; open the store in each process"
            )
        with self._lock, _translated(self.path):
            if self._connection is None:
                raise StoreError(f"the store {self.path.parent} is closed; open it again")
            if self._connection.in_transaction:
                # An interrupt came right behind BEGIN or before COMMIT: nobody would ever commit what
                # it left open, nor this transaction, which would only be a savepoint in it.
                self._connection.rollback()
            with self._utils.atomic():
                yield self._connection

    def truncate_log(self) -> None:
        """Empty the write-ahead log, so that deleted text is not left in it."""
        with self._lock, _translated(self.path):
            if self._connection is not None and not self.read_only:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def vacuum(self) -> None:
        """Write the database anew without its free pages, and empty the write-ahead log.

        Raises:
            StoreError: the disk is full, or another process is reading.
        """
        with self._lock, _translated(self.path):
            if self._connection is None:
                raise StoreError(f"the store {self.path.parent} is closed; open it again")
            if self._connection.in_transaction:
                self._connection.rollback()
            self._connection.execute("VACUUM")
            ((busy, *_),) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        if busy:
            raise StoreError(
                f"{self.path}: another process is reading it, so that its write-ahead log cannot be"
                " emptied; close it there and call scrub()"
            )

    def close(self) -> None:
        """Close the connection. Closing twice is fine."""
        with self._lock:
            if self._connection is not None and os.getpid() == self._process:
                self._connection.close()
            self._connection = None


def _connect(path: Path, read_only: bool) -> sqlite3.Connection:
    if read_only:
        # On read-only media SQLite cannot create the -shm file it reads a WAL database with.
        # Without a -wal there is no writer either, and the file may be read as it is.
        still = not os.access(path.parent, os.W_OK) and not Path(f"{path}-wal").exists()
        mode = "mode=ro&immutable=1" if still else "mode=ro"
    else:
        # SQLite would create it with the umask's mode; -wal and -shm take the database's.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)
        mode = "mode=rw"
    return sqlite3.connect(
        f"{path.as_uri()}?{mode}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )


def _prepare(connection: sqlite3.Connection, read_only: bool) -> UtilsDatabase:
    utils = UtilsDatabase(connection, execute_plugins=False)
    for pragma in ("foreign_keys=ON", "secure_delete=ON", "mmap_size=0", "trusted_schema=OFF"):
        connection.execute(f"PRAGMA {pragma}")
    if not read_only:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        migrations.apply(utils)
        with utils.atomic():
            prepare_index(connection)
    connection.row_factory = sqlite3.Row
    return utils


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        undecodable = str(error).startswith("Could not decode")  # the driver's own, without code
        if undecodable or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            what = "text that is not UTF-8" if undecodable else str(error)
            raise CorruptDataError(f"{path} is damaged ({what}); restore a backup") from error
        raise StoreError(f"{path}: {error}; nothing was changed") from error
