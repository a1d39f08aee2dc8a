"""Ctrl-C may come when a transaction is through already; what became durable then stays."""

from __future__ import annotations

import runpy
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from longmem.errors import StaleWriterError, StoreError, StoreLockedError
from longmem.store import Commit, SessionHandle
from longmem.stores import SQLiteStore, lock
from longmem.stores.files import Extent, Files
from longmem.stores.handle import SQLiteHandle
from longmem.stores.samples import assert_holds, fill, sample_commit, sample_info


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    with SQLiteStore(tmp_path / "store") as store:
        yield store


class InterruptedConnection:
    """A connection on which the interpreter delivers Ctrl-C as soon as a statement returns."""

    def __init__(self, connection: sqlite3.Connection, statement: str) -> None:
        self.connection = connection
        self.statement = statement
        self.pending = True

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        cursor = self.connection.execute(sql, *values)
        if self.pending and sql == self.statement:
            self.pending = False
            raise KeyboardInterrupt
        return cursor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)


@contextmanager
def interrupted_behind(store: SQLiteStore, statement: str) -> Iterator[None]:
    """The first `statement` in the block does its work and then raises KeyboardInterrupt."""
    utils = store._database._utils
    connection = InterruptedConnection(utils.conn, statement)
    utils.conn = connection
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        utils.conn = connection.connection
    assert not connection.pending


def test_a_commit_interrupted_behind_its_transaction_counts(store: SQLiteStore) -> None:
    session = store.create(sample_info())
    commits = fill(session, 2)
    commits.append(sample_commit(session.info))
    with interrupted_behind(store, "COMMIT"):
        session.commit(commits[-1])
    assert session.info.head == 3
    assert_holds(session, commits)
    expect_it_goes_on(store, session, commits)


def test_a_commit_interrupted_while_the_handle_takes_note_counts(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = store.create(sample_info())
    commits = [*fill(session, 1), sample_commit(session.info)]
    noted = session.claim.files  # type: ignore[attr-defined]  # of SQLiteHandle

    def append_half(files: Files, extent: Extent) -> None:
        files.extents.append(extent)
        if files is noted:
            raise KeyboardInterrupt
        files._starts.append(extent.start)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Files, "append", append_half)
        session.commit(commits[-1])
    expect_it_goes_on(store, session, commits)


def test_a_commit_interrupted_before_its_transaction_leaves_nothing(store: SQLiteStore) -> None:
    session = store.create(sample_info())
    commits = fill(session, 2)
    with interrupted_behind(store, "BEGIN"):
        session.commit(sample_commit(session.info))
    expect_it_goes_on(store, session, commits)


def test_an_interrupted_commit_that_cannot_be_looked_up_is_never_swept(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unanswered(*_: Any) -> None:
        raise StoreError("disk I/O error")

    session = store.create(sample_info())
    commits = [*fill(session, 1), sample_commit(session.info)]
    with monkeypatch.context() as patch, interrupted_behind(store, "COMMIT"):
        patch.setattr("longmem.stores.handle.claim_with", unanswered)
        session.commit(commits[-1])
    with pytest.raises(StaleWriterError, match="open it again"):
        session.commit(sample_commit(session.info))
    session.close()
    expect_it_goes_on(store, store.open("alice"), commits)


def expect_it_goes_on(store: SQLiteStore, session: SessionHandle, commits: list[Commit]) -> None:
    """The next commit has the handle's head for its parent; then all is there, also on disk."""
    assert session.info.head == len(commits)
    following = sample_commit(session.info)
    assert following.parent == session.info.head
    assert session.commit(following) == len(commits) + 1
    assert_holds(session, [*commits, following])
    assert store.verify() == []
    assert len(list((store.path / "files").iterdir())) == len(commits) + 1
    store.close()
    with SQLiteStore(store.path) as again:
        assert_holds(again.open("alice"), [*commits, following])
        assert again.verify() == []


def test_an_abandoned_file_that_a_commit_names_is_not_swept(store: SQLiteStore) -> None:
    session = store.create(sample_info())
    commits = fill(session, 1)
    (committed,) = (store.path / "files").iterdir()
    stray = committed.with_name("stray.safetensors")
    stray.touch()
    for file in (committed, stray):
        store._folder.abandon(file.name)
    commits += fill(session, 1)
    assert committed.exists()
    assert not stray.exists()
    assert_holds(session, commits)


def test_a_transaction_interrupted_at_its_begin_does_not_swallow_the_next_ones(
    store: SQLiteStore,
) -> None:
    with interrupted_behind(store, "BEGIN"):
        store.records.get("space", "key")
    store.records.put("space", "key", 1)
    with SQLiteStore(store.path, read_only=True) as reader:
        assert reader.records.get("space", "key") == 1


def test_a_rebuild_interrupted_behind_its_transaction_is_published(store: SQLiteStore) -> None:
    handle = store.create(sample_info())
    fill(handle, 2)
    staged = store.stage(handle, sample_info())
    commits = fill(staged, 1, [3, 4])
    with interrupted_behind(store, "COMMIT"):
        store.publish(handle, staged)
    staged.close()
    assert_holds(handle, commits)
    handle.close()
    expect_it_goes_on(store, store.open("alice"), commits)


@pytest.mark.parametrize("step", ["take_over", "release"])
def test_closing_a_stand_in_never_removes_what_it_published(
    step: str, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = store.create(sample_info())
    fill(handle, 2)
    staged = store.stage(handle, sample_info())
    commits = fill(staged, 1, [3, 4])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SQLiteHandle, step, interrupted)
        store.publish(handle, staged)
    staged.close()
    handle.close()
    expect_it_goes_on(store, store.open("alice"), commits)


def test_the_message_of_a_locked_store_names_its_writer_once(store: SQLiteStore) -> None:
    holder = store.path / "lock"
    holder.write_text("12345\n")
    with pytest.raises(StoreLockedError) as caught:
        SQLiteStore(store.path)
    assert "by another process (pid 12345);" in str(caught.value)


def test_a_platform_without_file_locks_is_named_as_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(ImportError, match="POSIX file locks"):
        runpy.run_path(lock.__file__)
