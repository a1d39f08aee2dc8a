"""A commit that fails, is killed or loses power at any step leaves all of it or nothing."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sqlite3
import stat
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import stores_faulty
from safetensors import SafetensorError
from stores_faulty import Step, Writer, commits_up_to, failing

from longmem.errors import StoreError
from longmem.stores import SQLiteStore
from longmem.stores.claim import insert_turns
from longmem.stores.samples import assert_holds, fill, sample_commit, sample_info

STEPS: dict[str, Step] = {
    "before writing": ("longmem.stores.turn_file", "serialize_file", 1, False),
    "written": ("longmem.stores.turn_file", "serialize_file", 1, True),
    "before file fsync": ("os", "fsync", 1, False),
    "checksums": ("longmem.stores.turn_file", "entries_of", 1, False),
    "before rename": ("os", "rename", 1, False),
    "renamed": ("os", "rename", 1, True),
    "before directory fsync": ("os", "fsync", 2, False),
    "before transaction": ("longmem.stores.handle", "advance_session", 1, False),
    "head set": ("longmem.stores.handle", "advance_session", 1, True),
    "commit row": ("longmem.stores.handle", "insert_commit", 1, True),
    "turn rows": ("longmem.stores.handle", "insert_turns", 1, True),
}
ERRORS: dict[str, BaseException] = {
    "disk full": OSError(errno.ENOSPC, "No space left on device"),
    "interrupt": KeyboardInterrupt(),
    "sqlite": sqlite3.OperationalError("disk I/O error"),
    "safetensors": SafetensorError("I/O error"),
}

writer = stores_faulty.writer


def test_the_steps_come_in_the_order_that_survives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def spy(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            is_dir = name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode)
            events.append(f"{name} directory" if is_dir else name)
            return original(*args, **options)

        return wrapped

    with SQLiteStore(tmp_path / "store") as store:
        session = store.create(sample_info())
        for module, name in (
            ("longmem.stores.turn_file", "serialize_file"),
            ("os", "fsync"),
            ("os", "rename"),
            ("longmem.stores.handle", "advance_session"),
        ):
            original = getattr(importlib.import_module(module), name)
            monkeypatch.setattr(f"{module}.{name}", spy(name, original))
        fill(session, 1)
        with store._database.transaction() as rows:
            assert rows.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
            assert rows.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL: fsync per commit
    assert events == ["serialize_file", "fsync", "rename", "fsync directory", "advance_session"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", ["disk full", "interrupt"])
def test_a_commit_that_fails_leaves_nothing_and_can_be_repeated(
    step: str, kind: str, tmp_path: Path
) -> None:
    expect_clean_failure(tmp_path / "store", STEPS[step], ERRORS[kind])


@pytest.mark.parametrize(
    ("step", "kind"),
    [("before writing", "safetensors"), ("turn rows", "sqlite"), ("head set", "sqlite")],
)
def test_library_errors_become_store_errors(step: str, kind: str, tmp_path: Path) -> None:
    error = expect_clean_failure(tmp_path / "store", STEPS[step], ERRORS[kind])
    assert isinstance(error, StoreError)


def test_a_transaction_that_fails_at_commit_itself_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def and_break_a_deferred_key(rows: sqlite3.Connection, key: int, turns: Any) -> None:
        insert_turns(rows, key, turns)
        rows.execute("PRAGMA defer_foreign_keys = ON")
        rows.execute("INSERT INTO commits VALUES (-1, 1, -1, 0, 0, 0, 0, 0, NULL)")

    path = tmp_path / "store"
    with SQLiteStore(path) as store:
        session = store.create(sample_info())
        commits = fill(session, 1)
        with monkeypatch.context() as patch:
            patch.setattr("longmem.stores.handle.insert_turns", and_break_a_deferred_key)
            with pytest.raises(StoreError, match="FOREIGN KEY"):
                session.commit(sample_commit(session.info))
        # COMMIT itself failed: the file may not go before another transaction succeeded.
        assert len(list((path / "files").iterdir())) == 2
        assert_holds(session, [*commits, *fill(session, 1)])
        assert len(list((path / "files").iterdir())) == 2
        assert store.verify() == []


def test_a_full_disk_is_a_store_error_that_says_nothing_was_stored(tmp_path: Path) -> None:
    error = expect_clean_failure(
        tmp_path / "store", STEPS["before file fsync"], ERRORS["disk full"]
    )
    assert isinstance(error, StoreError)
    for part in ("'alice'", "No space left", "Nothing was stored", "free space"):
        assert part in str(error)


def expect_clean_failure(path: Path, step: Step, error: BaseException) -> BaseException:
    """Commit with a fault; returns what was raised after checking that nothing else happened."""
    module, name, call, after = step
    faulty = failing(getattr(importlib.import_module(module), name), error, call, after=after)
    with SQLiteStore(path) as store:
        session = store.create(sample_info())
        commits = fill(session, 2)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(BaseException) as caught:
            patch.setattr(f"{module}.{name}", faulty)
            session.commit(sample_commit(session.info))
        assert_holds(session, commits)
        assert list((path / "tmp").iterdir()) == []
        commits += fill(session, 1)
        assert_holds(session, commits)
        assert len(list((path / "files").iterdir())) == 3
    with SQLiteStore(path) as store:
        assert_holds(store.open("alice"), commits)
        assert store.verify() == []
    return caught.value


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_any_step_is_cleaned_up_by_the_next_opening(
    step: str, writer: Writer, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    writer.start(path, STEPS[step])
    assert writer.drain() == [1, 2]
    expect_commits(path, 2)


def test_a_crash_behind_the_transaction_keeps_the_commit(writer: Writer, tmp_path: Path) -> None:
    path = tmp_path / "store"
    writer.start(path, ("longmem.stores.handle", "insert_turns", 1, True))
    assert writer.drain() == [1, 2]
    writer.start(path, ("longmem.stores.folder", "Folder.sweep", 1, False))
    assert writer.drain() == [3, 4]
    expect_commits(path, 5)


def test_kill_9_at_random_moments_loses_nothing_that_was_acknowledged(
    writer: Writer, tmp_path: Path
) -> None:
    path, random, acknowledged = tmp_path / "store", Random(7), 0
    for _ in range(8):
        process = writer.start(path, None)
        first = writer.read("acknowledged")
        time.sleep(random.uniform(0.0, 0.08))
        os.kill(process, signal.SIGKILL)
        last = [first, *writer.drain()][-1]
        assert last > acknowledged
        with SQLiteStore(path, read_only=True) as store:
            acknowledged = store.open("alice").info.head
        assert acknowledged in (last, last + 1)
        expect_commits(path, acknowledged)


def expect_commits(path: Path, count: int) -> None:
    """The store opens, holds exactly the first `count` commits, and no other file."""
    with SQLiteStore(path) as store:
        handle = store.open("alice")
        assert_holds(handle, commits_up_to(count))
        assert store.verify() == []
    assert len(list((path / "files").iterdir())) == count
    assert list((path / "tmp").iterdir()) == []
