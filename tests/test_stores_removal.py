"""Deleting is as safe as committing, and what is deleted is gone from the disk."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longmem.errors import StoreError
from longmem.store import Commit
from longmem.stores import SQLiteStore
from longmem.stores import folder as folders
from longmem.stores.removal import remove_session
from longmem.stores.samples import assert_holds, fill, sample_commit, sample_info

SECRET = "the gate code is 7391"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with the sessions "alice" (holds a secret) and "bob", of two commits each."""
    with SQLiteStore(tmp_path / "store") as store:
        alice, bob = store.create(sample_info("alice")), store.create(sample_info("bob"))
        alice.commit(with_secret(sample_commit(alice.info)))
        fill(alice, 1)
        fill(bob, 2)
        store.records.put("replies", "1", SECRET, session="alice")
    return tmp_path / "store"


def with_secret(commit: Commit) -> Commit:
    return replace(commit, turns=[replace(turn, text=SECRET) for turn in commit.turns])


def traces(path: Path) -> list[Path]:
    files = [entry for entry in path.rglob("*") if entry.is_file()]
    return [file for file in files if SECRET.encode() in file.read_bytes()]


def file_names(path: Path) -> set[str]:
    return {entry.name for entry in (path / "files").iterdir()}


def test_deleted_text_is_nowhere_on_disk(path: Path) -> None:
    assert traces(path) != []
    with SQLiteStore(path) as store:
        store.records.put("replies", "2", SECRET, session="alice")
        store.delete("alice")
        assert traces(path) == [], "while the store is still open"
        assert len(file_names(path)) == 2
    assert traces(path) == []


def test_text_replaced_by_a_rebuild_is_nowhere_on_disk(path: Path) -> None:
    with SQLiteStore(path) as store:
        store.records.delete("replies", "1")
        handle = store.open("alice")
        staged = store.stage(handle, sample_info())
        commits = fill(staged, 1)
        store.publish(handle, staged)
        assert traces(path) == []
        assert len(file_names(path)) == 3
        assert_holds(handle, commits)


def test_a_staged_session_a_crash_left_behind_is_dropped(path: Path) -> None:
    store = SQLiteStore(path)
    handle = store.open("alice")
    fill(store.stage(handle, sample_info()), 2)
    assert len(file_names(path)) == 6
    forget(store)
    with SQLiteStore(path) as store:
        assert len(file_names(path)) == 4
        assert [info.id for info in store.sessions()] == ["bob", "alice"]
        assert store.verify() == []


def forget(store: SQLiteStore) -> None:
    """Let go of a store as a dying process does: nothing is tidied up."""
    store._database.close()
    assert store._writer is not None
    store._writer.release()


def test_orphans_and_half_written_files_are_collected_by_the_next_writer(path: Path) -> None:
    kept = file_names(path)
    (path / "files" / "0123.safetensors").write_bytes(b"orphan")
    (path / "tmp" / "4567.safetensors").write_bytes(b"half")
    (path / "tmp" / ".tmpAbCdEf").write_bytes(b"half")
    with SQLiteStore(path) as store:
        assert file_names(path) == kept
        assert list((path / "tmp").iterdir()) == []
        assert store.verify() == []


def test_verify_reports_an_orphan_unless_it_may_be_a_commit_in_flight(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SQLiteStore(path) as store:
        (path / "files" / "stray").write_bytes(b"x")
        assert store.verify() == []
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + folders.ORPHAN_AGE + 1)
        (problem,) = store.verify()
        assert (problem.session, problem.file) == (None, "stray")
        assert store.verify("alice") == []


def test_a_deletion_that_fails_in_its_transaction_changes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove_and_fail(rows: Any, key: int) -> None:
        remove_session(rows, key)
        raise KeyboardInterrupt

    with SQLiteStore(path) as store:
        monkeypatch.setattr("longmem.stores.opened.remove_session", remove_and_fail)
        with pytest.raises(KeyboardInterrupt):
            store.delete("alice")
        assert store.open("alice").turns(0, 1)[0].text == SECRET
        assert store.records.get("replies", "1") == SECRET
        assert store.verify() == []
        assert len(file_names(path)) == 4


@pytest.mark.parametrize("unlinked", [0, 1, 2])
def test_a_deletion_cut_short_while_unlinking_is_finished_by_the_next_opening(
    unlinked: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def unlink(file: Path, missing_ok: bool = False) -> None:
        nonlocal calls
        calls += 1
        if calls > unlinked:
            raise OSError(errno.EIO, "I/O error")
        os.unlink(file)

    def fsync_dir(folder: Path) -> None:
        raise OSError(errno.EIO, "I/O error")

    with SQLiteStore(path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", unlink)
            patch.setattr(folders, "fsync_dir", fsync_dir)
            with pytest.raises(StoreError, match="I/O error"):
                store.delete("alice")
        assert len(file_names(path)) == 4 - unlinked
        assert [info.id for info in store.sessions()] == ["bob"]
    with SQLiteStore(path) as store:
        assert len(file_names(path)) == 2
        assert [info.id for info in store.sessions()] == ["bob"]
        assert store.verify() == []
        with store._database.transaction() as rows:
            assert rows.execute("SELECT * FROM unlink_queue").fetchall() == []
    assert traces(path) == []


def test_a_file_two_sessions_share_goes_with_the_last_of_them(path: Path) -> None:
    with sqlite3.connect(path / "longmem.db") as connection:
        connection.execute(
            "INSERT INTO commits SELECT 2, 3, file, 24, 24, 4, 4, 0, NULL FROM commits"
            " WHERE session = 1 AND seq = 1"
        )
    connection.close()
    with SQLiteStore(path) as store:
        store.delete("alice")
        assert len(file_names(path)) == 3
        store.delete("bob")
        assert file_names(path) == set()
        assert store.verify() == []
