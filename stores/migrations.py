"""The schema of ``longmem.db``, as numbered steps that are never edited once released.

The number of steps is the format: it stands in ``PRAGMA user_version``, and a database with a
higher one is refused. Sessions have a numeric `key`, so that a rebuilt stand-in can take over an
id; a file belongs to every commit that names it, so that sessions can share files. SQLite has no
checksums of its own: the columns of a session, turn or record that never change carry one.
"""

from __future__ import annotations

import secrets
import sqlite3
from pathlib import Path

from sqlite_utils import Database, Migrations

from longmem.errors import StoreFormatError
from longmem.stores.usage_schema import USAGE_SCHEMA

APPLICATION_ID = 0x6C6D656D  # "lmem"


def m001_first_schema(db: Database) -> None:
    """Sessions, their commits, files and turns, the unlink queue and adapters' records."""
    for statement in _FIRST_SCHEMA:
        db.execute(statement)
    db.execute("INSERT INTO meta(name, value) VALUES ('store', ?)", [secrets.token_hex(16)])
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute("PRAGMA user_version = 1")


def m002_merged_files(db: Database) -> None:
    """A session's bytes are kept; a file tells its format, its commits and its blocks' rows."""
    for statement in _MERGED_FILES:
        db.execute(statement)
    db.execute("PRAGMA user_version = 2")


def m003_limits(db: Database) -> None:
    """Limits and lifetimes of sessions, and running totals of what they hold."""
    for statement in USAGE_SCHEMA:
        db.execute(statement)
    db.execute("PRAGMA user_version = 3")


def m004_forks(db: Database) -> None:
    """Sessions that share commits, records tied to a commit, files to be trimmed, texts to search."""
    for statement in _FORKS:
        db.execute(statement)
    db.execute("PRAGMA user_version = 4")


STEPS = (m001_first_schema, m002_merged_files, m003_limits, m004_forks)
FORMAT = len(STEPS)

migrations = Migrations("longmem")
for step in STEPS:
    migrations()(step)


def check_format(connection: sqlite3.Connection, path: Path, *, migrate: bool) -> int:
    """The format of a database, 0 for an empty one.

    Refuses one that is not ours, or newer, or (unless it may migrate) older.

    Raises:
        StoreFormatError: the message says which of them and what to do.
    """
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        raise StoreFormatError(f"{path} is no readable SQLite database ({error})") from error
    if application != APPLICATION_ID and tables:
        raise StoreFormatError(f"{path} is a database of another program; choose another path")
    if version > FORMAT:
        raise StoreFormatError(
            f"{path} has format {version}, written by a newer longmem; this one reads up to"
            f" {FORMAT}: upgrade longmem"
        )
    if version < FORMAT and not migrate:
        raise StoreFormatError(
            f"{path} has the older format {version}; open it once without read_only to upgrade it"
        )
    return int(version)


_FIRST_SCHEMA = (
    """
    CREATE TABLE meta (
        name TEXT PRIMARY KEY,
        value TEXT NOT NULL
    )""",
    """
    CREATE TABLE sessions (
        key INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL,
        staged_for TEXT,
        owner TEXT,
        metadata TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        layout TEXT NOT NULL,
        dtype TEXT NOT NULL,
        created_at REAL NOT NULL,
        checksum INTEGER NOT NULL,
        updated_at REAL NOT NULL,
        head INTEGER NOT NULL DEFAULT 0,
        n_turns INTEGER NOT NULL DEFAULT 0,
        n_tokens INTEGER NOT NULL DEFAULT 0,
        lease_epoch INTEGER NOT NULL DEFAULT 0
    )""",
    "CREATE UNIQUE INDEX sessions_id ON sessions(id) WHERE staged_for IS NULL",
    "CREATE INDEX sessions_staged ON sessions(staged_for) WHERE staged_for IS NOT NULL",
    "CREATE INDEX sessions_owner ON sessions(owner, updated_at)",
    """
    CREATE TABLE files (
        key INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        session TEXT NOT NULL,
        layout TEXT NOT NULL,
        start INTEGER NOT NULL,
        stop INTEGER NOT NULL,
        chunk_rows INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        checksums BLOB NOT NULL,
        created_at REAL NOT NULL
    )""",
    """
    CREATE TABLE commits (
        session INTEGER NOT NULL REFERENCES sessions(key) ON DELETE CASCADE,
        seq INTEGER NOT NULL,
        file INTEGER NOT NULL REFERENCES files(key),
        start INTEGER NOT NULL,
        stop INTEGER NOT NULL,
        first_turn INTEGER NOT NULL,
        stop_turn INTEGER NOT NULL,
        created_at REAL NOT NULL,
        PRIMARY KEY (session, seq)
    ) WITHOUT ROWID""",
    "CREATE INDEX commits_file ON commits(file)",
    """
    CREATE TABLE turns (
        session INTEGER NOT NULL REFERENCES sessions(key) ON DELETE CASCADE,
        idx INTEGER NOT NULL,
        role TEXT NOT NULL,
        text TEXT NOT NULL,
        ids BLOB NOT NULL,
        start INTEGER NOT NULL,
        spans TEXT NOT NULL,
        created_at REAL NOT NULL,
        extra TEXT NOT NULL,
        checksum INTEGER NOT NULL,
        PRIMARY KEY (session, idx)
    )""",
    "CREATE INDEX turns_start ON turns(session, start)",
    "CREATE TABLE unlink_queue (name TEXT PRIMARY KEY) WITHOUT ROWID",
    """
    CREATE TABLE records (
        namespace TEXT NOT NULL,
        key TEXT NOT NULL,
        value TEXT NOT NULL,
        session TEXT,
        checksum INTEGER NOT NULL,
        PRIMARY KEY (namespace, key)
    ) WITHOUT ROWID""",
    "CREATE INDEX records_session ON records(session) WHERE session IS NOT NULL",
)

_MERGED_FILES = (
    "ALTER TABLE sessions ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0",
    """
    UPDATE sessions SET bytes = (
        SELECT coalesce(sum(f.bytes), 0) FROM files f
        WHERE f.key IN (SELECT c.file FROM commits c WHERE c.session = sessions.key)
    )""",
    "ALTER TABLE files ADD COLUMN format INTEGER NOT NULL DEFAULT 1",
    "ALTER TABLE files ADD COLUMN commits INTEGER NOT NULL DEFAULT 1",
    "ALTER TABLE files ADD COLUMN blocks TEXT NOT NULL DEFAULT 'null'",
    "ALTER TABLE files ADD COLUMN kv INTEGER NOT NULL DEFAULT 1",
)

_FORKS = (
    "ALTER TABLE sessions ADD COLUMN parent TEXT",
    "ALTER TABLE sessions ADD COLUMN parent_turn INTEGER",
    "ALTER TABLE sessions ADD COLUMN rollbacks INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE commits ADD COLUMN origin TEXT",
    "ALTER TABLE records ADD COLUMN head INTEGER",
    "DROP INDEX records_session",
    "CREATE INDEX records_session ON records(session, head) WHERE session IS NOT NULL",
    """
    CREATE TABLE trim_queue (
        file INTEGER PRIMARY KEY REFERENCES files(key) ON DELETE CASCADE
    )""",
    "CREATE VIEW turn_texts AS SELECT (session << 32) | idx AS docid, text FROM turns",
)
