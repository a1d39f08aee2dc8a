"""Erased and forgotten: no byte of it lies anywhere under the store's folder."""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import stores_on_disk
import torch

from longmem.errors import StoreError
from longmem.store import Commit, Record, SessionHandle
from longmem.stores import SQLiteStore
from longmem.stores import search_index as indexing
from longmem.stores.samples import assert_holds, fill, sample_commit, sample_info

WORD = "zqvxcanarywkj"
IDS = tuple(range(77_001, 77_013))
ROW = torch.arange(1.0, 17.0).mul(1.2345678)

TRACES = {
    "word": WORD.encode(),
    "end of the word": WORD[-8:].encode(),
    "sentence": f"the code is {WORD.upper()} 7391".encode(),
    "token ids": array("i", IDS).tobytes(),
    "keys and values": ROW.numpy().tobytes(),
}


path, store = stores_on_disk.path, stores_on_disk.store


def secret(handle: SessionHandle) -> Commit:
    """A commit full of what is to be erased."""
    commit = sample_commit(handle.info, [12])
    text = f"the code is {WORD.upper()} 7391, {WORD}"
    turn = replace(commit.turns[0], text=text, ids=IDS, extra={"reasoning": text})
    kv = [rows.clone() for rows in commit.kv]
    kv[0][5, 0] = ROW.reshape(2, 8)
    return replace(
        commit,
        turns=[turn],
        kv=kv,
        blocks={**commit.blocks, "representatives": ROW.reshape(1, 2, 8)[:, :, :8].repeat(1, 2, 1)},
        state={**commit.state, "scores": ROW},
        records=[Record("replies", f"{handle.info.id} {handle.info.head}", {"text": text})],
    )


def traces(path: Path) -> set[tuple[str, str]]:
    """(trace, kind of file) of everything that can be found in any file, however it is called."""
    found = set()
    for file in path.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            found |= {(name, file.suffix or file.name) for name, t in TRACES.items() if t in data}
    return found


def kinds(path: Path) -> set[str]:
    return {name for name, _ in traces(path)}


def merge_all(handle: SessionHandle) -> None:
    while handle.merge(handle.info.n_tokens):
        pass


def told(store: SQLiteStore, before: int = 1, behind: int = 4) -> SessionHandle:
    """ "alice": commits, a secret, and more commits, merged where they are enough."""
    handle = store.create(sample_info(metadata={"title": WORD.title()}))
    fill(handle, before)
    handle.commit(secret(handle))
    fill(handle, behind)
    merge_all(handle)
    return handle


def test_the_traces_are_there_before(store: SQLiteStore, path: Path) -> None:
    handle = told(store)
    assert kinds(path) == set(TRACES)
    assert {suffix for _, suffix in traces(path)} >= {".db-wal", ".safetensors"}
    handle.close()
    store.close()
    assert kinds(path) == set(TRACES)


def test_nothing_is_left_of_an_erased_session(store: SQLiteStore, path: Path) -> None:
    other = store.create(sample_info("bob"))
    kept = fill(other, 4)
    told(store).close()
    store.erase("alice")
    assert traces(path) == set(), "while the store is still open"
    assert_holds(other, kept)
    assert [index for index, _, _ in other.search("turn 3", 1)] == [3]
    assert other.search(WORD, 3) == []
    assert store.verify() == []
    store.close()
    assert traces(path) == set()


def test_nothing_is_left_of_what_was_rolled_back_and_scrubbed(
    store: SQLiteStore, path: Path
) -> None:
    handle = store.create(sample_info())
    kept = fill(handle, 1)
    handle.commit(secret(handle))
    fill(handle, 4)
    merge_all(handle)
    fork = store.fork("alice", sample_info("bob"), 1)
    handle.rollback(1)
    assert kinds(path) <= {"word", "end of the word"}, "words of the full-text index alone"
    store.scrub()
    assert traces(path) == set()
    assert_holds(handle, kept)
    assert_holds(fork, kept)
    assert_holds(handle, kept + fill(handle, 2))
    assert store.verify() == []


def test_nothing_is_left_of_a_turn_that_a_rebuild_leaves_out(
    store: SQLiteStore, path: Path
) -> None:
    handle = store.create(sample_info())
    kept = fill(handle, 1)
    handle.commit(secret(handle))
    fill(handle, 4)
    merge_all(handle)
    staged = store.stage(handle, handle.info, 1)
    kept += fill(staged, 4)
    store.publish(handle, staged, heads={2: None})
    store.scrub()
    assert traces(path) == set()
    assert_holds(handle, kept)
    assert store.verify() == []


def test_a_fork_keeps_what_it_shares_until_it_is_erased_too(store: SQLiteStore, path: Path) -> None:
    source = told(store)
    early = store.fork("alice", sample_info("early"), 1)
    store.fork("alice", sample_info("late"), 3).close()
    source.close()
    store.erase("alice")
    assert kinds(path) == set(TRACES)
    store.erase("late")
    assert traces(path) == set()
    assert early.info.head == 1
    assert store.verify() == []


def test_a_secret_told_to_a_fork_does_not_outlive_it(store: SQLiteStore, path: Path) -> None:
    source = store.create(sample_info())
    kept = fill(source, 3)
    merge_all(source)
    fork = store.fork("alice", sample_info("bob"), 2)
    fork.commit(secret(fork))
    fill(fork, 3)
    merge_all(fork)
    fork.close()
    store.erase("bob")
    assert traces(path) == set()
    assert_holds(source, kept)


def test_records_replaced_and_deleted_leave_nothing(store: SQLiteStore, path: Path) -> None:
    for number in range(50):
        store.records.put("space", str(number), f"the code is {WORD.upper()} 7391")
    for number in range(25):
        store.records.put("space", str(number), "nothing")
    for number in range(25, 50):
        store.records.delete("space", str(number))
    store.scrub()
    assert traces(path) == set()


@pytest.mark.parametrize("seed", range(3))
def test_no_word_of_a_dropped_turn_stays_in_the_full_text_index(
    store: SQLiteStore, path: Path, seed: int
) -> None:
    random, gone, held = Random(seed), set[str](), list[str]()
    handle = store.create(sample_info())
    for _ in range(60):
        if handle.info.head > 3 and random.random() < 0.3:
            head = random.randrange(handle.info.head)
            gone |= set(held[head:])
            del held[head:]
            handle.rollback(head)
        else:
            held.append("".join(random.choices("abcdefghijklmnop", k=16)))
            commit = sample_commit(handle.info, [1])
            handle.commit(replace(commit, turns=[replace(commit.turns[0], text=held[-1])]))
    store.scrub()
    data = (path / "longmem.db").read_bytes()
    assert [word for word in gone if word[-10:].encode() in data] == []
    for index, word in enumerate(held):
        assert [hit[0] for hit in handle.search(word, 2)] == [index]
    assert store.verify() == []


def test_a_log_that_a_reader_holds_is_reported(
    store: SQLiteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(store).close()
    with store._database.transaction() as rows:
        rows.execute("PRAGMA busy_timeout = 50")
    reader = sqlite3.connect(f"{(path / 'longmem.db').as_uri()}?mode=ro", uri=True)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM turns").fetchone()
    with pytest.raises(StoreError, match=r"another process is reading.*scrub\(\)"):
        store.erase("alice")
    assert store.sessions() == []
    reader.close()
    store.scrub()
    assert traces(path) == set()


@pytest.mark.parametrize("verb", ["erase", "publish"])
def test_a_scrub_that_a_crash_came_before_is_made_up_for(
    path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, caplog: pytest.LogCaptureFixture
) -> None:
    def crash() -> None:
        raise KeyboardInterrupt

    with SQLiteStore(path) as store, suppress(KeyboardInterrupt):
        kept = fill(store.create(sample_info("bob")), 2)
        handle = store.create(sample_info())
        fill(handle, 1)
        handle.commit(secret(handle))
        fill(store.create(sample_info("carol")), 2)
        monkeypatch.setattr(store, "scrub", crash)
        if verb == "publish":
            staged = store.stage(handle, handle.info, 1)
            store.publish(handle, staged, heads={2: None}, forgets=True)
            store.scrub()
        handle.close()
        store.erase("alice")
    assert kinds(path) != set()

    monkeypatch.setattr("longmem.stores.database._BUSY_SECONDS", 0.05)
    reader = sqlite3.connect(f"{(path / 'longmem.db').as_uri()}?mode=ro", uri=True)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM turns").fetchone()
    with SQLiteStore(path) as store:
        assert "traces of what was erased or forgotten may be left" in caplog.text
        assert kinds(path) != set()
    reader.close()

    with SQLiteStore(path) as store:
        assert traces(path) == set()
        assert_holds(store.open("bob"), kept)
        assert store.verify() == []
        with store._database.transaction() as rows:
            assert rows.execute("SELECT 1 FROM meta WHERE name = 'scrub'").fetchone() is None


@pytest.fixture
def without_fts(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Let SQLite have full-text search or not."""

    def switch(there: bool) -> None:
        monkeypatch.setattr(indexing, "available", lambda: there)

    return switch


def test_a_sqlite_without_full_text_search_misses_nothing_else(
    path: Path, without_fts: Callable[[bool], None]
) -> None:
    without_fts(False)
    with SQLiteStore(path) as store:
        handle = store.create(sample_info())
        commits = fill(handle, 3)
        fork = store.fork("alice", sample_info("bob"), 2)
        assert_holds(fork, commits[:2])
        handle.rollback(1)
        assert_holds(handle, commits[:1])
        with pytest.raises(StoreError, match=r"cannot be searched.*FTS5.*use a Python"):
            handle.search("turn", 1)
        assert store.verify() == []
        fork.close()
        store.erase("bob")
        assert [info.id for info in store.sessions()] == ["alice"]


def test_an_index_that_was_not_kept_is_made_anew(
    path: Path, without_fts: Callable[[bool], None]
) -> None:
    with SQLiteStore(path) as store:
        handle = store.create(sample_info())
        fill(handle, 3)
    without_fts(False)
    with SQLiteStore(path) as store:
        handle = store.open("alice")
        fill(handle, 1)
        handle.rollback(3)
        commit = sample_commit(handle.info, [2])
        handle.commit(replace(commit, turns=[replace(commit.turns[0], text="elephants")]))
        with pytest.raises(StoreError, match="no FTS5"):
            store.scrub()
    without_fts(True)
    with (
        SQLiteStore(path, read_only=True) as reader,
        pytest.raises(StoreError, match="open the store once for writing"),
    ):
        reader.open("alice").search("turn", 1)
    with SQLiteStore(path) as store:
        handle = store.open("alice")
        assert [hit[0] for hit in handle.search("elephants", 3)] == [6]
        assert [hit[0] for hit in handle.search("says 7", 9)] == list(range(5, -1, -1))
        assert store.verify() == []
