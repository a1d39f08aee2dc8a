"""Who may open a store, and what a store refuses to be opened as."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from longmem.errors import (
    SessionClosedError,
    SessionNotFoundError,
    StaleWriterError,
    StoreError,
    StoreFormatError,
    StoreLockedError,
    StoreReadOnlyError,
)
from longmem.stores import SQLiteStore
from longmem.stores.samples import assert_holds, fill, sample_commit, sample_info

OTHER_PROCESS = """
import sys
from longmem.stores import SQLiteStore
from longmem.stores.samples import fill, sample_info
store = SQLiteStore(sys.argv[1])
handle = store.create(sample_info("other"))
for line in sys.stdin:
    fill(handle, 1)
    print("committed", flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with one session, "alice", of two commits."""
    with SQLiteStore(tmp_path / "store") as store:
        fill(store.create(sample_info()), 2)
    return tmp_path / "store"


@pytest.fixture
def other(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the store and has committed once to its session "other"."""
    command = [sys.executable, "-c", OTHER_PROCESS, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        commit_in(process)
        yield process
        process.kill()


def commit_in(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    assert process.stdout.readline() == "committed\n"


def test_a_second_process_is_locked_out_but_may_read(
    path: Path, other: subprocess.Popen[str]
) -> None:
    with pytest.raises(StoreLockedError) as caught:
        SQLiteStore(path)
    for part in (str(path), str(other.pid), "read_only=True"):
        assert part in str(caught.value)
    with SQLiteStore(path, read_only=True) as reader:
        handle = reader.open("other")
        first = sample_commit(sample_info("other"))
        assert_holds(handle, [first])
        commit_in(other)
        assert_holds(handle, [first])  # a handle shows the session as it was opened
        handle.close()
        assert reader.open("other").info.head == 2
        assert reader.verify() == []
    other.kill()
    other.wait()
    with SQLiteStore(path) as store:
        assert store.open("other").info.head == 2


def test_the_same_process_is_locked_out_too(path: Path) -> None:
    with SQLiteStore(path), pytest.raises(StoreLockedError, match=f"this process .*{os.getpid()}"):
        SQLiteStore(path)
    SQLiteStore(path).close()


def test_a_store_forgotten_without_close_lets_the_next_one_in(path: Path) -> None:
    store = SQLiteStore(path)
    with pytest.warns(ResourceWarning):
        del store
    SQLiteStore(path).close()


def test_a_forked_child_must_not_use_its_parents_store(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SQLiteStore(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        with pytest.raises(StoreError, match="fork"):
            store.open("alice")
    store.open("alice")
    store.close()


def test_every_write_to_a_read_only_store_is_refused(path: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in (path / "files").iterdir()}
    with SQLiteStore(path, read_only=True) as store:
        handle = store.open("alice")
        for write in (
            lambda: store.create(sample_info("bob")),
            lambda: store.delete("alice"),
            lambda: handle.commit(sample_commit(handle.info)),
            lambda: store.stage(handle, sample_info()),
            lambda: store.publish(handle, handle),
            lambda: store.records.put("space", "key", 1),
            lambda: store.records.delete("space", "key"),
        ):
            with pytest.raises(StoreReadOnlyError, match="read-only"):
                write()
        assert handle.info.head == 2
    assert {file: file.stat().st_mtime_ns for file in (path / "files").iterdir()} == before


def test_a_reader_learns_that_its_session_was_deleted(path: Path) -> None:
    with SQLiteStore(path) as store, SQLiteStore(path, read_only=True) as reader:
        handle = reader.open("alice")
        store.delete("alice")
        for read in (handle.snapshot, handle.turns, lambda: handle.turns_at([0])):
            with pytest.raises(SessionClosedError, match="deleted, rebuilt"):
                read()
        handle.close()
        with pytest.raises(SessionNotFoundError):
            reader.open("alice")


def test_a_reader_leaves_orphans_and_the_unlink_queue_to_the_writer(path: Path) -> None:
    stray = path / "files" / "stray.safetensors"
    stray.write_bytes(b"x")
    SQLiteStore(path, read_only=True).close()
    assert stray.exists()
    SQLiteStore(path).close()
    assert not stray.exists()


def test_a_writer_that_lost_its_lease_writes_nothing(path: Path) -> None:
    with SQLiteStore(path) as store:
        handle = store.open("alice")
        with sqlite3.connect(path / "longmem.db") as connection:
            connection.execute("UPDATE sessions SET lease_epoch = lease_epoch + 1")
        connection.close()
        for use in (
            lambda: handle.commit(sample_commit(handle.info)),
            lambda: store.publish(handle, store.stage(handle, sample_info())),
        ):
            with pytest.raises(StaleWriterError, match="alice"):
                use()
        handle.close()
        handle = store.open("alice")
        assert handle.info.head == 2
        fill(handle, 1)
        handle.close()
    with SQLiteStore(path) as store:
        assert len(list((path / "files").iterdir())) == 3
        assert store.verify() == []


def test_a_newer_format_is_refused_with_the_advice_to_upgrade(path: Path) -> None:
    with sqlite3.connect(path / "longmem.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    for read_only in (False, True):
        with pytest.raises(StoreFormatError, match=r"format 99.*upgrade longmem"):
            SQLiteStore(path, read_only=read_only)


def test_an_older_format_is_not_migrated_by_a_reader(path: Path) -> None:
    with sqlite3.connect(path / "longmem.db") as connection:
        connection.execute("PRAGMA user_version = 0")
    connection.close()
    with pytest.raises(StoreFormatError, match="without read_only"):
        SQLiteStore(path, read_only=True)


@pytest.mark.parametrize("read_only", [False, True])
def test_what_is_no_store_is_refused_and_left_alone(read_only: bool, tmp_path: Path) -> None:
    a_file = tmp_path / "file"
    a_file.write_text("text")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("text")
    other_program = tmp_path / "other"
    other_program.mkdir()
    with sqlite3.connect(other_program / "longmem.db") as connection:
        connection.execute("CREATE TABLE theirs(x)")
    connection.close()
    garbage = tmp_path / "garbage"
    garbage.mkdir()
    (garbage / "longmem.db").write_text("not a database at all" * 100)
    for path in (a_file, foreign, other_program, garbage):
        with pytest.raises(StoreFormatError, match=str(path)):
            SQLiteStore(path, read_only=read_only)
    assert [entry.name for entry in foreign.iterdir()] == ["thesis.tex"]


def test_a_path_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="choose another path"):
        SQLiteStore(tmp_path / "file" / "store")


def test_reading_a_store_that_is_not_there_creates_nothing(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(StoreFormatError, match="no longmem store"):
            SQLiteStore(path, read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_creation_that_was_interrupted_is_completed(tmp_path: Path) -> None:
    for name in ("files", "tmp"):
        (tmp_path / "store" / name).mkdir(parents=True)
    (tmp_path / "store" / "longmem.db").touch()
    with SQLiteStore(tmp_path / "store") as store:
        fill(store.create(sample_info()), 1)
        assert store.verify() == []


def test_folders_are_0700_and_files_0600_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "new" / "store"
    path.mkdir(parents=True, mode=0o755)
    kept = os.umask(0)
    try:
        with SQLiteStore(path) as store:
            fill(store.create(sample_info()), 2)
            found = {entry: stat.S_IMODE(entry.stat().st_mode) for entry in path.rglob("*")}
            found[path] = stat.S_IMODE(path.stat().st_mode)
    finally:
        os.umask(kept)
    assert len(found) == 9  # the folder, db, -wal, -shm, lock, tmp, files and two turn files
    wrong = {
        entry: mode for entry, mode in found.items() if mode != (0o700 if entry.is_dir() else 0o600)
    }
    assert wrong == {}


def test_modes_that_were_opened_up_are_closed_again(path: Path) -> None:
    for entry, mode in ((path, 0o755), (path / "files", 0o777), (path / "longmem.db", 0o644)):
        entry.chmod(mode)
    with SQLiteStore(path):
        assert stat.S_IMODE((path / "longmem.db-wal").stat().st_mode) == 0o600
    assert stat.S_IMODE((path / "longmem.db").stat().st_mode) == 0o600
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in (path, path / "files")} == {0o700}


def test_a_store_on_read_only_media_can_be_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder without write permission would not stop a test that runs as root."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with SQLiteStore(path, read_only=True) as store:
        assert store.open("alice").info.head == 2
        assert store.verify() == []
    assert [entry.name for entry in path.glob("*-*")] == [], "no -wal and no -shm was created"


def test_a_session_with_unicode_in_the_stores_path_works(tmp_path: Path) -> None:
    path = tmp_path / "a b?c#d%20é"
    with SQLiteStore(path) as store:
        fill(store.create(sample_info()), 1)
    with SQLiteStore(path, read_only=True) as store:
        assert [info.id for info in store.sessions()] == ["alice"]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
