"""Turns a store into one of an older format, as an earlier release left it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

_STEPS = ("m001_first_schema", "m002_merged_files", "m003_limits", "m004_forks")
_COLUMNS = {
    2: {"sessions": ["bytes"], "files": ["format", "commits", "blocks", "kv"]},
    3: {"sessions": ["row_bytes", "max_bytes", "ttl"]},
    4: {"sessions": ["parent", "parent_turn", "rollbacks"], "commits": ["origin"]},
}


def downgrade(path: Path, version: int) -> None:
    """Undo every step of the migration behind `version` in the database of the store at `path`."""
    database = sqlite3.connect(path / "longmem.db", isolation_level=None)
    _undo_forks(database)
    if version < 3:
        for (name,) in _names(database, "trigger"):
            database.execute(f"DROP TRIGGER {name}")
        database.execute("DROP TABLE usage")
        database.execute("DROP INDEX sessions_expiring")
    for step in range(4, version, -1):
        for table, columns in _COLUMNS[step].items():
            for column in columns:
                database.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        database.execute("DELETE FROM _sqlite_migrations WHERE name = ?", (_STEPS[step - 1],))
    database.execute(f"PRAGMA user_version = {version}")
    database.close()


def _undo_forks(database: sqlite3.Connection) -> None:
    database.execute("DROP TABLE turn_words")
    database.execute("DROP VIEW turn_texts")
    database.execute("DELETE FROM meta WHERE name = 'search'")
    database.execute("DROP TABLE trim_queue")
    database.execute("DROP INDEX records_session")
    database.execute("ALTER TABLE records DROP COLUMN head")
    database.execute("CREATE INDEX records_session ON records(session) WHERE session IS NOT NULL")


def _names(database: sqlite3.Connection, kind: str) -> list[tuple[str]]:
    return database.execute("SELECT name FROM sqlite_master WHERE type = ?", (kind,)).fetchall()
