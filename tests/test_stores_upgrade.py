"""A store of the first format opens, is upgraded, and goes on."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from longmem.errors import StoreFormatError
from longmem.stores import SQLiteStore
from longmem.stores.handle import SQLiteHandle
from longmem.stores.samples import assert_equal, assert_holds, assert_same, fill, sample_info
from longmem.stores.turn_file import Identity

ADDED = {
    "sessions": ("bytes", "row_bytes", "max_bytes", "ttl"),
    "files": ("format", "commits", "blocks", "kv"),
}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store as the first release left it: the session "alice", of six commits."""
    of_now = SQLiteHandle._identity

    def of_format_1(self: SQLiteHandle, claim: object, commit: object) -> Identity:
        return replace(of_now(self, claim, commit), format=1)  # type: ignore[arg-type]

    with SQLiteStore(tmp_path / "store") as store, monkeypatch.context() as patch:
        patch.setattr(SQLiteHandle, "_identity", of_format_1)
        fill(store.create(sample_info()), 6)
    with sqlite3.connect(tmp_path / "store/longmem.db") as database:
        made = database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for (name,) in made:
            database.execute(f"DROP TRIGGER {name}")
        database.execute("DROP TABLE usage")
        database.execute("DROP INDEX sessions_expiring")
        for table, columns in ADDED.items():
            for column in columns:
                database.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        database.execute("DELETE FROM _sqlite_migrations WHERE name <> 'm001_first_schema'")
        database.execute("PRAGMA user_version = 1")
    database.close()
    return tmp_path / "store"


def test_the_files_are_those_of_the_first_format(path: Path) -> None:
    for file in (path / "files").iterdir():
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
        assert metadata["format"] == "longmem-turns/1"
        assert "commits" not in metadata


def test_an_old_store_holds_what_it_held_and_takes_commits_and_merges(path: Path) -> None:
    with pytest.raises(StoreFormatError, match="older format 1"):
        SQLiteStore(path, read_only=True)
    with SQLiteStore(path.with_name("other")) as other:
        commits = fill(other.create(sample_info()), 8)
    with SQLiteStore(path, merge_bytes=10_000) as store:
        assert store.verify() == []
        on_disk = sum(file.stat().st_size for file in (path / "files").iterdir())
        assert [info.bytes for info in store.sessions()] == [on_disk]
        handle = store.open("alice")
        assert_holds(handle, commits[:6])
        (rows,) = handle.read_blocks("representatives", [(2, 5)])
        lazy = handle.snapshot(lazy=("rep",))
        assert lazy is not None
        assert lazy.lazy == {"representatives": 6}
        fill(handle, 2)
        assert_holds(handle, commits)
        assert handle.merge(96)
        assert handle.merge(96)
        assert_equal(handle.read_blocks("representatives", [(2, 5)])[0], rows)
        assert_holds(handle, commits)
        assert store.verify() == []
    with SQLiteStore(path, read_only=True) as reader:
        handle = reader.open("alice")
        assert_holds(handle, commits)
        snapshot = handle.snapshot()
        assert snapshot is not None
        assert_same(snapshot.state, commits[-1].state)
