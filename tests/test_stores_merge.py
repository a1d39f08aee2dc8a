"""Merging while a session is in use: nothing is lost, whatever happens in the middle of it."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import stores_faulty
import stores_on_disk
import torch
from safetensors.torch import load_file
from stores_faulty import Step, Writer, commits_up_to, failing
from stores_on_disk import MERGE_BYTES

from longmem.errors import (
    CorruptDataError,
    SessionClosedError,
    StaleWriterError,
    StoreError,
    StoreReadOnlyError,
)
from longmem.store import Commit, SessionHandle
from longmem.stores import SQLiteStore
from longmem.stores import handle as handles
from longmem.stores.samples import (
    assert_equal,
    assert_holds,
    assert_same,
    fill,
    sample_commit,
    sample_info,
)

STEPS: dict[str, Step] = {
    "before writing": ("longmem.stores.handle", "write_merged", 1, False),
    "half written": ("longmem.stores.merged_file", "_Column.append", 4, True),
    "before file fsync": ("os", "fsync", 1, False),
    "before rename": ("os", "rename", 1, False),
    "renamed": ("os", "rename", 1, True),
    "before directory fsync": ("os", "fsync", 2, False),
    "before transaction": ("longmem.stores.handle", "replace_files", 1, False),
    "rows replaced": ("longmem.stores.handle", "replace_files", 1, True),
}
AFTER: dict[str, Step] = {
    "before unlinking": ("longmem.stores.handle", "work_off_queue", 1, False),
    "unlinked": ("longmem.stores.folder", "Folder.unlink", 1, True),
}


path, store, writer = stores_on_disk.path, stores_on_disk.store, stores_faulty.writer


def files(path: Path) -> int:
    return len(list((path / "files").iterdir()))


def merge_all(handle: SessionHandle, upto: int | None = None, **options: Any) -> int:
    merged = 0
    while handle.merge(handle.info.n_tokens if upto is None else upto, **options):
        merged += 1
    return merged


def test_small_files_become_one_and_hold_the_same(store: SQLiteStore, path: Path) -> None:
    handle = store.create(sample_info())
    commits = fill(handle, 8)
    assert merge_all(handle) == 2
    assert files(path) == 4  # two of three commits each, two single ones
    assert_holds(handle, commits)
    assert store.verify() == []
    assert handle.info.bytes == sum(f.stat().st_size for f in (path / "files").iterdir())
    assert store.sessions() == [handle.info]
    commits += fill(handle, 1)
    assert merge_all(handle) == 1
    assert_holds(handle, commits)
    handle.close()
    assert_holds(store.open("alice"), commits)


def test_nothing_behind_the_given_token_is_merged(store: SQLiteStore, path: Path) -> None:
    handle = store.create(sample_info())
    fill(handle, 4)  # of 12 tokens each
    assert merge_all(handle, 35) == 0
    assert merge_all(handle, 36) == 1
    assert files(path) == 2


def test_no_key_or_value_is_written_more_than_twice(store: SQLiteStore, path: Path) -> None:
    handle = store.create(sample_info())
    for _ in range(40):
        fill(handle, 1)
        before = {f.name for f in (path / "files").iterdir() if f.stat().st_size > MERGE_BYTES}
        merge_all(handle)
        after = {f.name for f in (path / "files").iterdir()}
        assert before <= after, "a merged file was merged again"
    assert files(path) == 14


def test_large_files_stay_and_small_ones_between_them_are_merged(
    store: SQLiteStore, path: Path
) -> None:
    handle = store.create(sample_info())
    commits = fill(handle, 1, [50]) + fill(handle, 2) + fill(handle, 1, [40]) + fill(handle, 1)
    commits += fill(handle, 1, [60]) + fill(handle, 1)
    assert merge_all(handle) == 1
    assert files(path) == 6
    assert_holds(handle, commits)


def test_a_merged_file_is_plain_safetensors(store: SQLiteStore, path: Path) -> None:
    handle = store.create(sample_info(dtype="bfloat16"))
    commits = fill(handle, 6)
    assert merge_all(handle) == 1
    (file,) = (path / "files").iterdir()
    tensors = load_file(file)
    expected = {f"kv.{i}": torch.cat([c.kv[i] for c in commits]) for i in range(3)}
    for name in ("table", "representatives"):
        expected[f"blocks.{name}"] = torch.cat([commit.blocks[name] for commit in commits])
    assert_same({name: t for name, t in tensors.items() if "commits" not in name}, expected)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_merged_file_tells_the_state_and_rows_of_each_of_its_commits(store: SQLiteStore) -> None:
    handle = store.create(sample_info())
    commits = fill(handle, 3)
    merge_all(handle)
    (extent,) = handle.claim.files.extents  # type: ignore[attr-defined]  # of SQLiteHandle
    file = store._folder.open(extent.file)
    for i, commit in enumerate(commits):
        assert_same(file.state(i), commit.state)
        assert file.block_rows(i + 1) == {"table": i + 1, "representatives": i + 1}


def test_state_that_did_not_change_is_kept_once(store: SQLiteStore, path: Path) -> None:
    handle = store.create(sample_info())
    for _ in range(3):
        commit = fill_one(handle, {"rng": torch.zeros(100_000)})
    merge_all(handle)
    (file,) = (path / "files").iterdir()
    assert 400_000 < file.stat().st_size < 450_000
    snapshot = handle.snapshot()
    assert snapshot is not None
    assert_same(snapshot.state, commit.state)


def fill_one(handle: SessionHandle, state: dict[str, torch.Tensor]) -> Commit:
    commit = replace(sample_commit(handle.info), state=state)
    handle.commit(commit)
    return commit


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", ["disk full", "interrupt"])
def test_a_merge_that_fails_changes_nothing_and_can_be_repeated(
    step: str, kind: str, path: Path
) -> None:
    error: BaseException = KeyboardInterrupt()
    if kind == "disk full":
        error = OSError(errno.ENOSPC, "No space left on device")
    module, name, call, after = STEPS[step]
    with SQLiteStore(path, merge_bytes=MERGE_BYTES) as store:
        handle = store.create(sample_info())
        commits = fill(handle, 5)
        with (
            pytest.MonkeyPatch.context() as patch,
            pytest.raises((type(error), StoreError)) as caught,
        ):
            faulty = failing(owner_of(module, name), error, call, after=after)
            patch.setattr(f"{module}.{name}", faulty)
            handle.merge(60)
        if kind == "disk full" and "transaction" not in step and step != "rows replaced":
            for part in ("'alice'", "No space left", "Nothing was changed", "goes on"):
                assert part in str(caught.value)
        assert list((path / "tmp").iterdir()) == []
        assert_holds(handle, commits)
        commits += fill(handle, 1)
        assert files(path) == 6
        assert merge_all(handle) == 2
        assert_holds(handle, commits)
        assert files(path) == 2
        assert store.verify() == []
    with SQLiteStore(path) as store:
        assert_holds(store.open("alice"), commits)
        assert store.verify() == []


def owner_of(module: str, name: str) -> Any:
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def test_a_merge_whose_old_files_cannot_be_unlinked_is_finished_by_the_next_opening(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "I/O error")

    with SQLiteStore(path, merge_bytes=MERGE_BYTES) as store:
        handle = store.create(sample_info())
        commits = fill(handle, 4)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", refuse)
            assert handle.merge(48)
        assert files(path) == 5
        assert_holds(handle, commits)
    with SQLiteStore(path) as store:
        assert files(path) == 2
        assert_holds(store.open("alice"), commits)


@pytest.mark.parametrize("step", {**STEPS, **AFTER})
def test_a_kill_at_any_step_of_a_merge_loses_nothing(step: str, writer: Writer, path: Path) -> None:
    writer.start(path, {**STEPS, **AFTER}[step], "merges")
    assert writer.drain() == [1, 2, 3, 4, 5]
    expect_commits(path, 5)
    assert files(path) == (5 if step in STEPS else 3)


def test_kills_at_random_moments_of_commits_and_merges_lose_nothing(
    writer: Writer, path: Path
) -> None:
    random, acknowledged = Random(5), 0
    for _ in range(6):
        process = writer.start(path, None, "merges")
        first = writer.read("acknowledged")
        time.sleep(random.uniform(0.0, 0.15))
        os.kill(process, signal.SIGKILL)
        last = [first, *writer.drain()][-1]
        with SQLiteStore(path, read_only=True) as reader:
            acknowledged = reader.open("alice").info.head
        assert acknowledged in (last, last + 1)
        expect_commits(path, acknowledged)
    assert files(path) < acknowledged


def expect_commits(path: Path, count: int) -> None:
    """The store opens, holds exactly the first `count` commits, and no file too many."""
    with SQLiteStore(path) as store:
        handle = store.open("alice")
        assert_holds(handle, commits_up_to(count))
        assert store.verify() == []
        known = {extent.file.name for extent in handle.claim.files.extents}  # type: ignore[attr-defined]
        assert {file.name for file in (path / "files").iterdir()} == known
    assert list((path / "tmp").iterdir()) == []


def test_a_reader_that_opened_before_the_merges_goes_on(store: SQLiteStore, path: Path) -> None:
    handle = store.create(sample_info())
    commits = fill(handle, 4)
    with SQLiteStore(path, read_only=True) as reader:
        early, late = reader.open("alice"), None
        assert_equal(early.read_kv(0, 0, 12), commits[0].kv[0])
        more = fill(handle, 2)
        assert merge_all(handle) == 2
        assert_equal(early.read_kv(0, 0, 12), commits[0].kv[0])  # of the file it holds open
        assert_holds(early, commits)  # the second merged file holds commits it must not show
        assert early.read_blocks("table", [(0, 4)])[0].tolist() == [[i, i] for i in range(4)]
        with pytest.raises(IndexError):
            early.read_blocks("table", [(0, 5)])
        early.close()
        late = reader.open("alice")
        assert_holds(late, commits + more)
        with pytest.raises(StoreReadOnlyError):
            late.merge(24)
        assert reader.verify() == []


def test_commits_and_readers_go_on_while_files_are_merged(store: SQLiteStore, path: Path) -> None:
    handle = store.create(sample_info())
    commits, errors, done = fill(handle, 3), [], threading.Event()
    rows = torch.cat([commit.kv[1] for commit in commits])

    def watched(work: Callable[[], object]) -> threading.Thread:
        def loop() -> None:
            try:
                while not done.is_set():
                    work()
            except BaseException as error:
                errors.append(error)

        return threading.Thread(target=loop)

    def read() -> None:
        assert_equal(handle.read_spans(1, [(0, 5), (10, 30)])[1], rows[10:30])
        snapshot = handle.snapshot(lazy=("rep",))
        assert snapshot is not None
        assert snapshot.blocks["table"][:, 0].tolist() == list(range(snapshot.head))
        assert snapshot.lazy == {"representatives": snapshot.head}
        handle.read_blocks("representatives", [(snapshot.head - 1, snapshot.head)])

    threads = [watched(lambda: handle.merge(handle.info.n_tokens)), watched(read), watched(read)]
    for thread in threads:
        thread.start()
    commits += fill(handle, 40)
    done.set()
    for thread in threads:
        thread.join()
    assert errors == []
    merge_all(handle)
    assert files(path) == 15
    assert_holds(handle, commits)
    assert store.verify() == []


def test_a_commit_waits_for_no_merge_that_is_being_written(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = store.create(sample_info())
    commits, writing, go_on = fill(handle, 3), threading.Event(), threading.Event()
    original = handles.write_merged

    def slow(*args: Any, **options: Any) -> Any:
        writing.set()
        assert go_on.wait(30)
        return original(*args, **options)

    monkeypatch.setattr(handles, "write_merged", slow)
    thread = threading.Thread(target=handle.merge, args=[36])
    thread.start()
    assert writing.wait(30)
    commits += fill(handle, 2)
    assert_holds(handle, commits)
    go_on.set()
    thread.join()
    assert_holds(handle, commits)
    assert len(handle.claim.files.extents) == 3  # type: ignore[attr-defined]  # of SQLiteHandle


@pytest.mark.parametrize("how", ["close", "publish", "delete"])
def test_a_merge_that_is_overtaken_leaves_nothing(
    how: str, store: SQLiteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = store.create(sample_info())
    commits = fill(handle, 3)
    staged = store.stage(handle, sample_info())
    rebuilt = fill(staged, 1, [4])
    original = handles.write_merged

    def overtaken(*args: Any, **options: Any) -> Any:
        if how == "publish":
            store.publish(handle, staged)
            return original(*args, **options)
        thread = threading.Thread(target=handle.close)
        thread.start()
        while not handle._leaving:  # type: ignore[attr-defined]  # of SQLiteHandle
            time.sleep(0.001)
        try:
            return original(*args, **options)
        finally:
            waiting.append(thread)

    waiting: list[threading.Thread] = []
    monkeypatch.setattr(handles, "write_merged", overtaken)
    with pytest.raises(StaleWriterError if how == "publish" else SessionClosedError):
        handle.merge(36)
    for thread in waiting:
        thread.join()
    staged.close()
    if how == "delete":
        store.delete("alice")
    else:
        handle = handle if how == "publish" else store.open("alice")
        assert_holds(handle, rebuilt if how == "publish" else commits)
    assert files(path) == {"close": 3, "publish": 1, "delete": 0}[how]
    assert list((path / "tmp").iterdir()) == []
    assert store.verify() == []


def test_a_file_that_vanished_stops_the_merge_and_harms_no_other_session(
    store: SQLiteStore, path: Path
) -> None:
    bob = store.create(sample_info("bob"))
    of_bob = fill(bob, 3)
    kept = set((path / "files").iterdir())
    alice = store.create(sample_info())
    fill(alice, 3)
    victim = next(iter(set((path / "files").iterdir()) - kept))
    victim.unlink()
    for use in (lambda: alice.merge(36), alice.snapshot, lambda: alice.read_spans(0, [(0, 36)])):
        with pytest.raises(CorruptDataError) as caught:
            use()
        for part in ("'alice'", victim.name, "is missing", "backup", "rebuild=True"):
            assert part in str(caught.value)
    assert alice.info.head == 3
    assert len(alice.turns()) == 6
    assert bob.merge(36)
    assert_holds(bob, of_bob)
    assert {problem.session for problem in store.verify()} == {"alice"}


def test_a_merged_file_that_vanished_or_rots_is_named(store: SQLiteStore, path: Path) -> None:
    handle = store.create(sample_info())
    fill(handle, 3)
    assert merge_all(handle) == 1
    (file,) = (path / "files").iterdir()
    data = bytearray(file.read_bytes())
    for at in range(0, len(data), 499):  # in the header, the tensors and what is kept of commits
        data[at] ^= 1
        file.write_bytes(data)
        (problem,) = store.verify()
        assert (problem.session, problem.file) == ("alice", file.name)
        data[at] ^= 1
    file.unlink()
    with pytest.raises(CorruptDataError, match=file.name):
        handle.snapshot()


def test_keys_and_values_are_dropped_only_when_asked_and_never_the_first(
    store: SQLiteStore, path: Path
) -> None:
    handle = store.create(sample_info())
    commits = fill(handle, 9) + fill(handle, 1, [80]) + fill(handle, 1)
    size = handle.info.bytes
    assert (
        merge_all(handle, drop_kv=True, keep=40) == 4
    )  # the third run and the large file lose them
    assert handle.info.bytes < size
    snapshot = handle.snapshot()
    assert snapshot is not None
    assert_same(snapshot.state, commits[-1].state)
    assert_equal(snapshot.blocks["table"], torch.cat([c.blocks["table"] for c in commits]))
    assert_equal(handle.read_kv(2, 0, 72), torch.cat([c.kv[2] for c in commits[:6]]))
    assert_equal(handle.read_kv(2, 188, 200), commits[-1].kv[2])
    for start, stop in [(71, 73), (100, 101), (150, 151)]:
        with pytest.raises(StoreError, match="were dropped when its files were merged"):
            handle.read_kv(2, start, stop)
    assert store.verify() == []
    handle.close()
    assert store.open("alice").read_kv(0, 0, 72).shape[0] == 72


def test_a_store_may_be_told_never_to_merge(path: Path) -> None:
    with SQLiteStore(path, merge_bytes=None) as store:
        handle = store.create(sample_info())
        fill(handle, 5)
        assert not handle.merge(60)
        assert files(path) == 5


def test_a_session_and_its_store_can_close_at_the_same_time(store: SQLiteStore) -> None:
    handle = store.create(sample_info())
    closing = threading.Thread(target=handle.close, daemon=True)
    with store._guard:  # the store is closing: it holds its lock while it asks its handles to close
        closing.start()
        time.sleep(0.05)
        assert handle._merging.acquire(timeout=5), "the closing session waits with its lock held"
        handle._merging.release()
    closing.join(5)
    assert not closing.is_alive()
