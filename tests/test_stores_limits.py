"""Limits of bytes per session, owner and store, and sessions that expire, on real SQLite."""

from __future__ import annotations

import gc
import logging
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import stores_on_disk
from conftest import SMALL
from stores_older import downgrade

from longmem import Engine, MemoryConfig
from longmem.errors import (
    ConfigError,
    SessionClosedError,
    SessionNotFoundError,
    StoreError,
    StoreFullError,
)
from longmem.store import SessionHandle, Store
from longmem.stores import InMemoryStore, SQLiteStore, folder, quota, turn_file
from longmem.stores.handle import _tensors
from longmem.stores.quota import ROW_BYTES, file_bytes
from longmem.stores.samples import assert_holds, fill, sample_commit, sample_info

MAKERS: dict[str, Callable[..., Store]] = {
    "sqlite": lambda path, **limits: SQLiteStore(path / "store", **limits),
    "memory": lambda path, **limits: InMemoryStore(**limits),
}


path = stores_on_disk.path


@pytest.fixture
def commit_bytes(tmp_path: Path) -> Iterator[int]:
    """What one sample commit is charged with in a `SQLiteStore`."""
    with SQLiteStore(tmp_path / "measured") as store:
        handle = store.create(sample_info())
        empty = handle.info.charged
        fill(handle, 1)
        yield handle.info.charged - empty


def files_of(store: SQLiteStore) -> list[Path]:
    return sorted((store.path / "files").iterdir())


@pytest.mark.parametrize("maker", MAKERS)
def test_the_sessions_of_one_owner_share_a_limit(maker: str, tmp_path: Path) -> None:
    with MAKERS[maker](tmp_path, max_owner_bytes=70_000) as store:
        first, second = (store.create(sample_info(name, owner="ann")) for name in ("a", "b"))
        other = store.create(sample_info("c", owner="ben"))
        nobodys = store.create(sample_info("d", owner=None))
        held = [fill(first, 2, [60]), fill(second, 1, [60])]
        with pytest.raises(StoreFullError, match="max_owner_bytes = 70,000"):
            second.commit(sample_commit(second.info, [60]))
        assert_holds(first, held[0])
        assert_holds(second, held[1])
        assert_holds(other, fill(other, 2, [60]))
        assert_holds(nobodys, fill(nobodys, 4, [60]))
        first.close()
        store.delete("a")
        assert_holds(second, [*held[1], *fill(second, 1, [60])])
        assert store.verify() == []


@pytest.mark.parametrize("maker", MAKERS)
def test_all_sessions_of_a_store_share_a_limit(maker: str, tmp_path: Path) -> None:
    with MAKERS[maker](tmp_path, max_bytes=70_000) as store:
        first, second = (store.create(sample_info(name, owner=name)) for name in ("a", "b"))
        held = fill(first, 3, [60])
        with pytest.raises(StoreFullError, match=r"the store's max_bytes = 70,000") as refused:
            second.commit(sample_commit(second.info, [60]))
        for part in ("session 'b' of owner 'b'", "Nothing was written", "sessions prune"):
            assert part in str(refused.value)
        with pytest.raises(StoreFullError):
            store.create(sample_info("c", metadata={"notes": "x" * 70_000}))
        assert {info.id for info in store.sessions()} == {"a", "b"}
        store.create(sample_info("c"))
        fill(second, 1, [1])
        assert_holds(first, held)
        assert store.verify() == []


@pytest.mark.parametrize("maker", MAKERS)
def test_a_rebuild_counts_beside_what_it_replaces(maker: str, tmp_path: Path) -> None:
    with MAKERS[maker](tmp_path, max_bytes=70_000) as store:
        handle = store.create(sample_info(max_bytes=50_000))
        held = fill(handle, 2, [60])
        staged = store.stage(handle, handle.info)
        fill(staged, 1, [60])
        with pytest.raises(StoreFullError, match="the store's max_bytes"):
            staged.commit(sample_commit(staged.info, [60]))
        staged.close()
        assert_holds(handle, held)
        staged = store.stage(handle, handle.info)
        small = fill(staged, 2, [10])
        store.publish(handle, staged)
        assert [info.charged for info in store.sessions()] == [handle.info.charged]
        assert_holds(handle, [*small, *fill(handle, 1, [60])])
        assert store.verify() == []


@pytest.mark.parametrize("maker", MAKERS)
def test_what_a_stand_in_shares_with_its_session_counts_once(maker: str, tmp_path: Path) -> None:
    with MAKERS[maker](tmp_path, max_owner_bytes=80_000, max_bytes=80_000) as store:
        handle = store.create(sample_info())
        held = fill(handle, 3, [60])
        staged = store.stage(handle, handle.info, 3)
        with pytest.raises(StoreFullError, match="80,000"):
            staged.commit(sample_commit(staged.info, [100]))
        held += fill(staged, 1, [10])
        store.publish(handle, staged)
        assert [info.charged for info in store.sessions()] == [handle.info.charged]
        assert_holds(handle, held)
        with pytest.raises(StoreFullError, match="80,000"):
            handle.commit(sample_commit(handle.info, [100]))
        with pytest.raises(StoreFullError, match="80,000"):
            store.fork("alice", sample_info("bob"), 4)
        handle.rollback(1)
        store.fork("alice", sample_info("bob"), 1).close()
        assert_holds(handle, held[:1])
        assert store.verify() == []


@pytest.mark.parametrize("maker", MAKERS)
def test_a_rollback_needs_no_room(maker: str, tmp_path: Path) -> None:
    with MAKERS[maker](tmp_path) as store:
        handle = store.create(sample_info())
        held = fill(handle, 4)
        handle.limit(max_bytes=1_000, ttl=None)
        handle.rollback(2)
        assert_holds(handle, held[:2])
        with pytest.raises(StoreFullError):
            handle.commit(sample_commit(handle.info))


def test_forks_rollbacks_and_deletions_keep_the_totals_right(path: Path) -> None:
    with SQLiteStore(path, merge_bytes=10_000) as store:
        source = store.create(sample_info(owner="ann"))
        fill(source, 6)
        while source.merge(source.info.n_tokens):
            pass
        fork = store.fork("alice", sample_info("bob", owner="ben"), 4)
        assert fork.info.bytes == source.info.bytes, "files are charged in full to both"
        source.rollback(2)
        source.close()
        store.delete("alice")
        on_disk = sum(file.stat().st_size for file in files_of(store))
        assert store.info("bob").bytes == fork.info.bytes == on_disk
        charged = fork.info.charged
        assert totals_of(path) == {"": charged, "ben": charged}
        fork.close()
        store.erase("bob")
        assert totals_of(path) == {"": 0}


def test_a_refused_commit_writes_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def written(*_: Any) -> None:
        raise AssertionError("the file was written")

    with SQLiteStore(path) as store:
        handle = store.create(sample_info())
        commits = fill(handle, 1)
        handle.limit(max_bytes=handle.info.charged + 100, ttl=None)
        with monkeypatch.context() as patch:
            patch.setattr(turn_file, "write", written)
            with pytest.raises(StoreFullError):
                handle.commit(sample_commit(handle.info))
        assert len(files_of(store)) == 1
        handle.limit(max_bytes=None, ttl=None)
        assert_holds(handle, [*commits, *fill(handle, 1)])


@pytest.mark.parametrize("lengths", [[1], [7, 5], [64, 65, 300]])
def test_the_size_of_a_file_is_known_before_it_is_written(lengths: list[int], path: Path) -> None:
    with SQLiteStore(path) as store:
        handle = store.create(sample_info())
        commit = sample_commit(handle.info, lengths)
        handle.commit(commit)
        (file,) = files_of(store)
        metadata = handle.claim.files.extents[0].file.identity.metadata()  # type: ignore[attr-defined]
        assert abs(file_bytes(_tensors(commit), metadata) - file.stat().st_size) <= 16


def test_two_threads_cannot_exceed_their_owners_limit_together(
    path: Path, commit_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_checked = threading.Barrier(2)
    write = folder.Folder.write

    def write_when_both_were_checked(*args: Any) -> Any:
        both_checked.wait(10)
        return write(*args)

    with SQLiteStore(path) as store:
        fill(store.create(sample_info("a")), 1)
        store.create(sample_info("b"))
        used = sum(info.charged for info in store.sessions())
    with SQLiteStore(path, max_owner_bytes=used + commit_bytes * 3 // 2) as store:
        handles = [store.open(name) for name in ("a", "b")]
        outcomes: list[str] = []

        def commit(handle: SessionHandle) -> None:
            try:
                handle.commit(sample_commit(handle.info))
                outcomes.append("committed")
            except StoreFullError:
                outcomes.append("refused")

        monkeypatch.setattr(folder.Folder, "write", write_when_both_were_checked)
        threads = [threading.Thread(target=commit, args=[handle]) for handle in handles]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["committed", "refused"]
        assert len(files_of(store)) == 2, "the refused commit's file is gone at once"
        assert sum(info.charged for info in store.sessions()) <= used + commit_bytes * 3 // 2
        assert store.verify() == []
        assert sorted(handles, key=lambda handle: handle.info.head)[0].info in store.sessions()


def recounted(store: SQLiteStore) -> dict[str, int]:
    """What each session holds, counted from the disk and its turns."""
    held = {}
    with store._database.transaction() as rows:
        for session in rows.execute("SELECT * FROM sessions").fetchall():
            texts = sum(
                len(text.encode()) + ROW_BYTES
                for turn in rows.execute("SELECT * FROM turns WHERE session = ?", (session["key"],))
                for text in ["".join((turn["role"], turn["text"], turn["spans"], turn["extra"]))]
            )
            ids = rows.execute(
                "SELECT coalesce(sum(length(ids)), 0) FROM turns WHERE session = ?",
                (session["key"],),
            ).fetchone()[0]
            names = rows.execute(
                """SELECT DISTINCT f.name FROM commits c JOIN files f ON f.key = c.file
                   WHERE c.session = ?""",
                (session["key"],),
            ).fetchall()
            commits = rows.execute(
                "SELECT count(*) FROM commits WHERE session = ?", (session["key"],)
            ).fetchone()[0]
            row = ("id", "owner", "metadata", "fingerprint", "layout", "dtype")
            held[session["id"]] = (
                sum((store.path / "files" / name["name"]).stat().st_size for name in names)
                + texts
                + ids
                + (commits + 1) * ROW_BYTES
                + sum(len((session[name] or "").encode()) for name in row)
            )
    return held


def totals_of(path: Path) -> dict[str, int]:
    """The running totals: by owner, and of the store under ""."""
    with sqlite3.connect(path / "longmem.db") as database:
        found = dict(database.execute("SELECT owner, bytes FROM usage").fetchall())
    database.close()
    return found


def test_totals_are_what_is_on_disk_after_whatever_happened(path: Path) -> None:
    random = Random(3)
    owners = {"a": "ann", "b": "ann", "c": "ben", "d": None}
    store, merges = SQLiteStore(path, merge_bytes=8_000), 0
    for _ in range(40):
        name = random.choice(list(owners))
        known = {info.id for info in store.sessions()}
        if name not in known:
            store.create(sample_info(name, owner=owners[name])).close()
        handle = store.open(name)
        match random.randrange(8):
            case 0:
                handle.close()
                store.delete(name)
            case 1:
                staged = store.stage(handle, handle.info)
                fill(staged, random.randrange(3), [random.randrange(1, 30)])
                if random.random() < 0.7:
                    store.publish(handle, staged)
                staged.close()
            case 2:
                store.stage(handle, handle.info)
                store._database.close()  # a crash: nothing is tidied up
                assert store._writer is not None
                store._writer.release()
                store = SQLiteStore(path, merge_bytes=8_000)
            case 3:
                fill(handle, 4, [9])
                merges += handle.merge(handle.info.n_tokens)
            case _:
                fill(handle, random.randrange(1, 4), [random.randrange(1, 90)])
        handle.close()
        held = recounted(store)
        assert {info.id: info.charged for info in store.sessions()} == held
        by_owner = dict.fromkeys([owners[name] for name in held if owners[name]], 0)
        for name, size in held.items():
            if owners[name]:
                by_owner[owners[name]] += size
        assert totals_of(path) == {**by_owner, "": sum(held.values())}
    assert store.verify() == []
    assert merges > 1
    store.close()


def test_rows_count_about_what_the_database_grows_by(path: Path) -> None:
    with SQLiteStore(path) as store:
        handle = store.create(sample_info())
        store._database.truncate_log()
        before = (path / "longmem.db").stat().st_size, handle.info.charged - handle.info.bytes
        fill(handle, 60)
        store._database.truncate_log()
        grown = (path / "longmem.db").stat().st_size - before[0]
        counted = handle.info.charged - handle.info.bytes - before[1]
        assert 0.5 * grown < counted < 1.5 * grown, (counted, grown)


def test_charging_a_commit_costs_the_same_however_much_there_is(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The full-text index merges its segments now and then, which is none of the charging.
    monkeypatch.setattr("longmem.stores.search_index.available", lambda: False)
    with SQLiteStore(path, max_bytes=10**9, max_owner_bytes=10**9) as store:
        handle = store.create(sample_info(max_bytes=10**9))
        steps = [0]

        def count() -> int:
            steps[0] += 1
            return 0

        def cost() -> int:
            steps[0] = 0
            with store._database.transaction() as rows:
                rows.set_progress_handler(count, 1)
            fill(handle, 1)
            with store._database.transaction() as rows:
                rows.set_progress_handler(None, 1)
            return steps[0]

        fill(handle, 10)
        before = cost()
        fill(handle, 60)
        assert cost() <= 1.02 * before


def test_totals_that_were_tampered_with_are_reported(path: Path) -> None:
    with SQLiteStore(path) as store:
        fill(store.create(sample_info()), 1)
        with store._database.transaction() as rows:
            rows.execute("UPDATE sessions SET row_bytes = row_bytes + 1")
            rows.execute("UPDATE usage SET bytes = 5 WHERE scope = 'store'")
        problems = store.verify()
        assert [problem.session for problem in problems] == ["alice", None]
        assert "charged with 5 bytes" in problems[1].message


def test_a_store_of_an_older_format_gets_its_totals(path: Path) -> None:
    with SQLiteStore(path) as store:
        for name, owner in (("a", "ann"), ("b", "ann"), ("c", None)):
            fill(store.create(sample_info(name, owner=owner)), 2)
        infos, totals = store.sessions(), totals_of(path)
    downgrade(path, 2)
    with SQLiteStore(path) as store:
        assert store.sessions() == infos
        assert totals_of(path) == totals
        assert store.verify() == []
        fill(store.open("a"), 1)
        assert store.verify() == []


def test_an_owner_is_forgotten_with_the_last_session(path: Path) -> None:
    with SQLiteStore(path) as store:
        for name in ("a", "b"):
            handle = store.create(sample_info(name, owner="ann"))
            fill(handle, 1)
            handle.close()
        store.delete("a")
        assert set(totals_of(path)) == {"", "ann"}
        store.delete("b")
        assert totals_of(path) == {"": 0}
    assert b"ann" not in (path / "longmem.db").read_bytes()


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("limits", [{"max_bytes": 0}, {"max_bytes": -5}, {"max_owner_bytes": 0}])
def test_a_limit_of_nothing_is_refused(maker: str, limits: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(limits))} is .*above 0"):
        MAKERS[maker](tmp_path, **limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong", [{"max_bytes": 0}, {"ttl": 0}, {"ttl": -1.0}, {"ttl": float("nan")}]
)
def test_a_setting_of_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"MemoryConfig.{next(iter(wrong))}"):
        MemoryConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"sweep_every": 0}, {"sweep_every": 1, "read_only": True}])
def test_a_sweep_that_cannot_work_is_refused(wrong: dict[str, Any], path: Path) -> None:
    with pytest.raises(ConfigError, match="sweep"):
        SQLiteStore(path, **wrong)


def expiring(store: SQLiteStore, *names: str) -> None:
    """Sessions whose time is over."""
    for name in names:
        handle = store.create(sample_info(name))
        fill(handle, 1)
        handle.limit(max_bytes=None, ttl=1e-3)
        handle.close()
    time.sleep(2e-3)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_thread_sweeps_until_the_store_is_closed(path: Path) -> None:
    with SQLiteStore(path) as store:
        expiring(store, "old")
        handle = store.open("old")
        assert store.sweep() == [], "it is open"
        assert handle.info.id == "old"
    with SQLiteStore(path, sweep_every=0.01) as store:
        wait_until(lambda: store.sessions() == [])
        expiring(store, "a", "b")
        wait_until(lambda: store.sessions() == [] and files_of(store) == [])
        (thread,) = [each for each in threading.enumerate() if each.name == "longmem-sweeper"]
    assert not thread.is_alive()


@pytest.mark.parametrize("error", [StoreError, OSError])
def test_a_sweep_that_fails_is_logged_once(
    error: type[Exception],
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[str] = []

    def refuse(self: SQLiteStore, session_id: str) -> None:
        calls.append(session_id)
        raise error("the disk refuses")

    with SQLiteStore(path) as store:
        expiring(store, "old")
    with caplog.at_level(logging.ERROR, "longmem.stores"), monkeypatch.context() as patch:
        patch.setattr(SQLiteStore, "delete", refuse)
        with SQLiteStore(path, sweep_every=0.005) as store:
            wait_until(lambda: len(calls) >= 3)
            assert [info.id for info in store.sessions()] == ["old"]
    (record,) = caplog.records
    assert "the disk refuses" in record.getMessage()


def test_a_sweeping_thread_does_not_keep_a_forgotten_store(path: Path) -> None:
    store = SQLiteStore(path, sweep_every=3600)
    gone, thread = weakref.ref(store), store._sweeper._thread
    del store
    gc.collect()
    assert gone() is None
    thread.join(10)
    assert not thread.is_alive()


def test_a_reader_of_a_session_that_expires_is_told_so(path: Path) -> None:
    with SQLiteStore(path) as store:
        expiring(store, "old")
        with SQLiteStore(path, read_only=True) as reader:
            handle = reader.open("old")
            handle.limit(max_bytes=5, ttl=None)  # kept by this handle only
            assert store.sweep() == ["old"]
            with pytest.raises(SessionClosedError, match="deleted, rebuilt"):
                handle.snapshot()
            with pytest.raises(StoreError, match="read-only"):
                reader.sweep()


def test_a_session_used_in_the_middle_of_a_sweep_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete = SQLiteStore.delete

    def use_the_other(self: SQLiteStore, session_id: str) -> None:
        delete(self, session_id)
        if session_id == "a":
            handle = store.open("b")
            handle.limit(max_bytes=None, ttl=3600)
            handle.close()

    with SQLiteStore(path) as store:
        expiring(store, "a", "b")
        monkeypatch.setattr(SQLiteStore, "delete", use_the_other)
        assert store.sweep() == ["a"]
        assert [info.id for info in store.sessions()] == ["b"]


def test_an_exchange_that_does_not_fit_leaves_the_session_as_it_was(path: Path) -> None:
    free = Engine.nano(SMALL)
    with SQLiteStore(path) as store:
        with free.session("alice", store=store, owner="ann") as session:
            session.ask("My code is 482913.", max_new_tokens=4)
            expected = session.ask("What is my code?", commit=False, max_new_tokens=8).text
        held = store.sessions()[0].charged
        engine = Engine.nano(SMALL.replace(max_bytes=held + 60_000, ttl=3600.0))
        with engine.session("alice", store=store, owner="ann") as session:
            assert store.sessions()[0].ttl == 3600.0
            told = r"'alice' of owner 'ann'.*MemoryConfig\.max_bytes.*another session"
            with pytest.raises(StoreFullError, match=told):
                session.add("user", "far too long " * 10)
            assert len(session.turns()) == 2
            assert session.ask("What is my code?", commit=False, max_new_tokens=8).text == expected
            session.add("user", "short")
            assert len(session.turns()) == 3
        with free.session("bob", store=store) as other:
            other.add("user", "far too long " * 10)
        with free.session("alice", store=store) as session:
            session.add("user", "far too long " * 10)
        assert [(info.max_bytes, info.ttl) for info in store.sessions()] == [(None, None)] * 2
        with pytest.raises(SessionNotFoundError):
            free.session("alice", store=store, owner="ben")
        assert store.verify() == []


def test_rows_are_counted_by_the_numbers_the_schema_has() -> None:
    from longmem.stores import usage_schema

    assert quota.ROW_BYTES == usage_schema.ROW
