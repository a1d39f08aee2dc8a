"""A store of an older format opens, is upgraded, and goes on."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open
from stores_older import downgrade
from stores_on_disk import MERGE_BYTES

from longmem.errors import StoreFormatError
from longmem.store import Commit, Record
from longmem.stores import SQLiteStore
from longmem.stores.handle import SQLiteHandle
from longmem.stores.samples import assert_equal, assert_holds, assert_same, fill, sample_info
from longmem.stores.turn_file import Identity


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store as the first release left it: the session "alice", of six commits."""
    of_now = SQLiteHandle._identity

    def of_format_1(self: SQLiteHandle, claim: object, commit: object) -> Identity:
        return replace(of_now(self, claim, commit), format=1)  # type: ignore[arg-type]

    with SQLiteStore(tmp_path / "store") as store, monkeypatch.context() as patch:
        patch.setattr(SQLiteHandle, "_identity", of_format_1)
        fill(store.create(sample_info()), 6)
    downgrade(tmp_path / "store", 1)
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


def test_a_store_of_the_first_format_can_be_forked_rolled_back_and_searched(path: Path) -> None:
    with SQLiteStore(path.with_name("other")) as other:
        commits = fill(other.create(sample_info()), 6)
    check_new_verbs(path, commits)


@pytest.mark.parametrize("version", [2, 3])
def test_a_store_with_merged_files_can_be_forked_rolled_back_and_searched(
    tmp_path: Path, version: int
) -> None:
    path = tmp_path / "store"
    with SQLiteStore(path, merge_bytes=MERGE_BYTES) as store:
        handle = store.create(sample_info())
        commits = fill(handle, 7)
        while handle.merge(handle.info.n_tokens):
            pass
        before = handle.info
    downgrade(path, version)
    with pytest.raises(StoreFormatError, match=f"older format {version}"):
        SQLiteStore(path, read_only=True)
    with SQLiteStore(path) as store:
        assert store.sessions() == [before]
    check_new_verbs(path, commits)


def check_new_verbs(path: Path, commits: list[Commit]) -> None:
    with SQLiteStore(path, merge_bytes=MERGE_BYTES) as store:
        assert store.verify() == []
        store.records.put("space", "key", {"n": 1}, session="alice")
        handle = store.open("alice")
        assert [index for index, _, _ in handle.search("says 5", 1)] == [5]
        fork = store.fork("alice", sample_info("bob"), 2)
        handle.rollback(4)
        assert_holds(handle, commits[:4])
        assert_holds(fork, commits[:2])
        record = Record("space", "reply", 2)
        handle.commit(replace(commits[4], records=[record]))
        assert_holds(handle, commits[:5])
        assert store.records.list("space") == [("key", {"n": 1}), ("reply", 2)]
        handle.rollback(4)
        assert store.records.list("space") == [("key", {"n": 1})]
        handle.close()
        store.delete("alice")
        assert store.records.list("space") == []
        assert_holds(fork, commits[:2])
        assert store.verify() == []
    with sqlite3.connect(path / "longmem.db") as database:
        assert database.execute("PRAGMA user_version").fetchone() == (4,)
    database.close()
