"""Forks and rollbacks on disk: files are shared, and never hold more than somebody needs."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import stores_on_disk
import torch
from stores_faulty import failing

from longmem.errors import (
    CorruptDataError,
    SessionClosedError,
    StaleWriterError,
    StoreError,
    StoreReadOnlyError,
)
from longmem.store import Commit, SessionHandle
from longmem.stores import SQLiteStore
from longmem.stores.commit_index import INDEX, STATES
from longmem.stores.handle import SQLiteHandle
from longmem.stores.samples import (
    assert_equal,
    assert_holds,
    fill,
    sample_commit,
    sample_info,
)

MERGE_BYTES = 30_000  # nine commits as `fill` makes them
MERGED = 9


path = stores_on_disk.path


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    with SQLiteStore(path, merge_bytes=MERGE_BYTES) as store:
        yield store


@pytest.fixture
def source(store: SQLiteStore) -> SessionHandle:
    """ "alice": nine commits in one merged file."""
    handle = store.create(sample_info())
    fill(handle, MERGED)
    assert handle.merge(handle.info.n_tokens)
    return handle


@pytest.fixture
def commits(tmp_path: Path) -> list[Commit]:
    """What `fill` commits to "alice"."""
    with SQLiteStore(tmp_path / "expected") as other:
        return fill(other.create(sample_info()), MERGED + 3)


def names(path: Path) -> set[str]:
    return {entry.name for entry in (path / "files").iterdir()}


def bytes_of(path: Path) -> int:
    return sum(entry.stat().st_size for entry in (path / "files").iterdir())


@pytest.mark.parametrize("head", range(1, MERGED))
def test_every_head_within_a_merged_file_is_bit_equal_after_rollback_and_in_a_fork(
    store: SQLiteStore, source: SessionHandle, commits: list[Commit], head: int
) -> None:
    fork = store.fork("alice", sample_info("bob"), head)
    assert_holds(fork, commits[:head])
    source.rollback(head)
    assert_holds(source, commits[:head])
    (rows,) = source.read_blocks("representatives", [(head - 1, head)])
    assert_equal(rows, commits[head - 1].blocks["representatives"])
    kept = commits[:head]
    assert_holds(source, kept + fill(source, 2, [2, 5]))
    assert_holds(fork, kept + fill(fork, 1, [1]))
    assert store.verify() == []


def test_a_fork_shares_files_and_holds_no_copy(
    store: SQLiteStore, source: SessionHandle, path: Path
) -> None:
    before = names(path)
    forks = [store.fork("alice", sample_info(str(n)), n) for n in range(MERGED + 1)]
    assert names(path) == before
    assert [fork.info.bytes for fork in forks] == [0] + [source.info.bytes] * MERGED


def test_commits_behind_a_rollback_share_positions_with_a_merged_file_that_a_fork_keeps(
    store: SQLiteStore, source: SessionHandle, commits: list[Commit], path: Path
) -> None:
    fork = store.fork("alice", sample_info("bob"), MERGED)
    source.rollback(4)
    of_source = commits[:4] + fill(source, 6, [11, 2])
    assert len(names(path)) == 1 + 6, "the fork needs all of the merged file: it stays as it is"
    assert_holds(source, of_source)
    assert_holds(fork, commits[:MERGED])
    (rows,) = source.read_spans(1, [(40, 70)])
    assert_equal(rows, torch.cat([commit.kv[1] for commit in of_source])[40:70])
    source.close()
    source = store.open("alice")
    assert_holds(source, of_source)
    while source.merge(source.info.n_tokens):
        pass
    assert_holds(source, of_source)
    fork.rollback(2)
    assert_holds(source, of_source)
    assert_holds(fork, commits[:2])
    assert store.verify() == []


def test_a_file_is_cut_to_the_longest_beginning_that_a_session_needs(
    store: SQLiteStore, source: SessionHandle, commits: list[Commit], path: Path
) -> None:
    short = store.fork("alice", sample_info("short"), 2)
    long = store.fork("alice", sample_info("long"), 6)
    whole = bytes_of(path)
    source.close()
    store.delete("alice")
    assert len(names(path)) == 1
    assert bytes_of(path) < 0.8 * whole
    for handle, head in ((short, 2), (long, 6)):
        assert handle.info.bytes == bytes_of(path)
        assert_holds(handle, commits[:head])
    long.rollback(4)
    cut = bytes_of(path)
    assert short.info.bytes == cut
    short.rollback(1)
    assert bytes_of(path) == cut, "the other still needs it"
    long.close()
    store.delete("long")
    assert bytes_of(path) < 0.5 * cut
    assert_holds(short, commits[:1])
    assert_holds(short, commits[:1] + fill(short, 3))
    assert store.sessions() == [short.info]
    assert store.verify() == []


def test_a_trimmed_file_holds_nothing_of_what_was_dropped(
    store: SQLiteStore, source: SQLiteHandle, commits: list[Commit], path: Path
) -> None:
    source.rollback(3)
    (extent,) = source.claim.files.extents
    file = store._folder.open_fresh(extent.file)
    assert extent.file.identity.commits == 3
    assert file.entries("kv.")["kv.0"].shape[0] == 36
    assert file.tensor("blocks.table").tolist() == [[0, 0], [1, 1], [2, 2]]
    assert len(file.tensor(STATES)) == sum(
        tensor.numel() * tensor.element_size()
        for commit in commits[:3]
        for tensor in commit.state.values()
    )
    data = (path / "files" / extent.file.name).read_bytes()
    for commit in commits[3:MERGED]:
        for tensor in (*commit.kv, commit.blocks["representatives"], commit.state["scores"]):
            assert tensor.numpy().tobytes()[:32] not in data
    assert set(file.entries("commits.")) == {INDEX, STATES}


def test_a_file_trimmed_to_one_commit_is_merged_again(
    store: SQLiteStore, source: SessionHandle, commits: list[Commit], path: Path
) -> None:
    source.rollback(1)
    kept = commits[:1] + fill(source, MERGED)
    assert source.merge(source.info.n_tokens)
    assert len(names(path)) == 2
    assert_holds(source, kept)
    source.rollback(5)
    assert_holds(source, kept[:5])
    assert store.verify() == []


def test_a_tensor_that_came_later_is_not_in_what_was_kept(store: SQLiteStore, path: Path) -> None:
    handle = store.create(sample_info())
    made = []
    for number in range(MERGED):
        commit = sample_commit(handle.info)
        if number > 4:
            commit = replace(commit, blocks={**commit.blocks, "late": torch.ones(2)})
        made.append(commit)
        handle.commit(commit)
    assert handle.merge(handle.info.n_tokens)
    fork = store.fork("alice", sample_info("bob"), 3)
    assert_holds(fork, made[:3])
    handle.rollback(3)
    for each in (fork, handle):
        assert_holds(each, made[:3])
        with pytest.raises(IndexError):
            each.read_blocks("late", [(0, 1)])


def test_a_merge_in_a_fork_leaves_the_source_its_files(store: SQLiteStore, path: Path) -> None:
    source = store.create(sample_info())
    of_source = fill(source, MERGED - 2)
    fork = store.fork("alice", sample_info("bob"), 5)
    of_fork = of_source[:5] + fill(fork, 4)
    assert fork.merge(fork.info.n_tokens)
    assert len(names(path)) == MERGED - 2 + 1
    assert_holds(source, of_source)
    assert_holds(fork, of_fork)
    source.close()
    store.delete("alice")
    assert len(names(path)) == 1
    fork.close()
    assert_holds(store.open("bob"), of_fork)
    assert store.verify() == []


@pytest.mark.parametrize("window", [1, 30])
def test_rows_that_a_merge_dropped_are_missed_before_anything_changes(
    store: SQLiteStore, commits: list[Commit], window: int
) -> None:
    handle = store.create(sample_info())
    fill(handle, 2 * MERGED + 2)
    while handle.merge(2 * MERGED * 12, drop_kv=True):
        pass
    dropped = MERGED + 5
    for use in (
        lambda: handle.rollback(dropped, window=window),
        lambda: store.fork("alice", sample_info("bob"), dropped, window=window),
        lambda: store.stage(handle, handle.info, dropped, window=window),
    ):
        with pytest.raises(StoreError, match=r"'alice'.*were dropped.*rebuild=True.*exact"):
            use()
    assert handle.info.head == 2 * MERGED + 2
    assert store.sessions() == [handle.info]
    handle.rollback(2 * MERGED + 2, window=window)
    with pytest.raises(StoreError, match="dropped"):
        handle.rollback(2 * MERGED + 1, window=13)
    handle.rollback(2 * MERGED + 1, window=12)
    handle.rollback(dropped)
    with pytest.raises(StoreError, match="dropped"):
        handle.read_kv(0, MERGED * 12, MERGED * 12 + 1)
    (rows,) = handle.read_blocks("table", [(0, dropped)])
    assert rows[:, 0].tolist() == list(range(dropped))
    assert store.verify() == []


def test_a_file_that_cannot_be_trimmed_now_is_trimmed_later(
    store: SQLiteStore, source: SessionHandle, commits: list[Commit], path: Path
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.rename", failing(os.rename, full, 1, after=False))
        source.rollback(4)
    whole = bytes_of(path)
    kept = commits[:4] + fill(source, 2)
    assert_holds(source, kept)
    assert store.verify() == []
    source.close()
    source = store.open("alice")
    assert_holds(source, kept)
    store.close()
    with SQLiteStore(path) as again:
        assert bytes_of(path) < whole
        assert_holds(again.open("alice"), kept)
        assert again.verify() == []


def test_a_damaged_shared_file_stands_in_the_way_of_scrubbing_alone(
    store: SQLiteStore, source: SessionHandle, path: Path
) -> None:
    fork = store.fork("alice", sample_info("bob"), 2)
    (file,) = (path / "files").iterdir()
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    source.rollback(4)
    source.close()
    store.delete("alice")
    other = store.create(sample_info("carol"))
    fill(other, 1)
    other.rollback(0)
    with pytest.raises(CorruptDataError, match=file.name):
        store.scrub()
    fork.close()
    store.delete("bob")
    store.scrub()
    assert store.verify() == []


def test_a_file_of_a_session_that_is_no_ancestor_is_not_served(
    store: SQLiteStore, source: SessionHandle
) -> None:
    fill(store.create(sample_info("eve")), 1)
    fork = store.fork("alice", sample_info("bob"), 2)
    fork.close()
    with store._database.transaction() as rows:
        rows.execute(
            """UPDATE commits SET origin = 'eve'
               WHERE session = (SELECT key FROM sessions WHERE id = 'bob')"""
        )
    fork = store.open("bob")
    with pytest.raises(CorruptDataError, match="written for session 'alice'"):
        fork.read_kv(0, 0, 1)
    assert [problem.session for problem in store.verify()] == ["bob"]


def test_verify_finds_files_that_are_too_long_and_records_without_a_session(
    store: SQLiteStore, source: SessionHandle
) -> None:
    with store._database.transaction() as rows:
        rows.execute("DELETE FROM turns WHERE idx >= 12")
        rows.execute("DELETE FROM commits WHERE seq > 6")
        rows.execute("UPDATE sessions SET head = 6, n_turns = 12, n_tokens = 72")
        rows.execute("INSERT INTO records VALUES ('space', 'key', '1', 'nobody', 0, NULL)")
    messages = " ".join(problem.message for problem in store.verify())
    assert "commits that no session refers to" in messages
    assert "tied to a session that is gone" in messages
    assert "full-text index does not hold" in messages


def test_a_damaged_parent_is_found_by_its_checksum(
    store: SQLiteStore, source: SessionHandle
) -> None:
    store.fork("alice", sample_info("bob"), 2).close()
    with store._database.transaction() as rows:
        rows.execute("UPDATE sessions SET parent = 'eve' WHERE id = 'bob'")
    with pytest.raises(CorruptDataError, match="'bob'"):
        store.info("bob")


def test_a_read_only_store_forks_and_rolls_nothing_back(store: SQLiteStore, path: Path) -> None:
    fill(store.create(sample_info()), 2)
    with SQLiteStore(path, read_only=True) as reader:
        handle = reader.open("alice")
        assert [hit[0] for hit in handle.search("turn 3", 1)] == [3]
        assert handle.point(3).head == 1
        for use in (
            lambda: handle.rollback(1),
            lambda: reader.fork("alice", sample_info("bob"), 1),
            lambda: reader.stage(handle, sample_info(), 1),
            lambda: reader.erase("alice"),
            reader.scrub,
        ):
            with pytest.raises(StoreReadOnlyError):
                use()
        assert reader.verify() == []


def test_a_reader_learns_that_its_session_was_rolled_back(
    store: SQLiteStore, source: SessionHandle, path: Path
) -> None:
    fork = store.fork("alice", sample_info("bob"), 5)
    with SQLiteStore(path, read_only=True) as reader:
        of_alice, of_bob = reader.open("alice"), reader.open("bob")
        source.rollback(4)
        fill(source, 8)
        for read in (
            of_alice.snapshot,
            of_alice.turns,
            of_alice.points,
            lambda: of_alice.turns_at([3]),
            lambda: of_alice.point(1),
            lambda: of_alice.search("turn", 1),
        ):
            with pytest.raises(SessionClosedError, match="rolled back"):
                read()
        assert of_bob.read_kv(0, 0, 60).shape[0] == 60
        fork.close()
        source.close()
        store.delete("alice")
        assert of_bob.read_kv(0, 0, 60).shape[0] == 60, "from the file that was trimmed meanwhile"


def test_a_stale_handle_rolls_nothing_back(store: SQLiteStore, source: SessionHandle) -> None:
    with store._database.transaction() as rows:
        rows.execute("UPDATE sessions SET lease_epoch = lease_epoch + 1")
    with pytest.raises(StaleWriterError, match="nothing was changed"):
        source.rollback(2)
    with pytest.raises(StaleWriterError, match="nothing was changed"):
        store.stage(source, source.info, 2)
    assert store.info("alice").head == MERGED


@pytest.mark.parametrize(
    "step",
    [
        "longmem.stores.handle.rewind",
        "longmem.stores.rewinding.drop_commits",
        "longmem.stores.rewinding.unindex_turns",
    ],
)
@pytest.mark.parametrize("after", [False, True])
def test_a_rollback_that_is_interrupted_changes_nothing(
    store: SQLiteStore, source: SessionHandle, commits: list[Commit], step: str, after: bool
) -> None:
    module, name = step.rsplit(".", 1)
    original = getattr(__import__(module, fromlist=[name]), name)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(step, failing(original, KeyboardInterrupt(), 1, after=after))
        source.rollback(4)
    assert_holds(source, commits[:MERGED])
    assert_holds(source, commits[:MERGED] + fill(source, 1))
    assert store.verify() == []


def test_an_interrupt_behind_the_commit_of_a_rollback_leaves_the_handle_at_the_new_head(
    store: SQLiteStore, source: SessionHandle, commits: list[Commit]
) -> None:
    transaction = store._database.transaction
    calls = 0

    class Interrupted:
        def __init__(self) -> None:
            self._inner = transaction()

        def __enter__(self):  # type: ignore[no-untyped-def]
            return self._inner.__enter__()

        def __exit__(self, *error):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += 1
            self._inner.__exit__(*error)
            if calls == 1:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store._database, "transaction", Interrupted)
        source.rollback(4)
    assert_holds(source, commits[:4])
    kept = commits[:4] + fill(source, 2)
    assert_holds(source, kept)
    store.scrub()
    assert_holds(source, kept)
    assert store.verify() == []


def test_reads_commits_and_merges_go_on_while_shared_files_are_trimmed(
    store: SQLiteStore, source: SessionHandle, commits: list[Commit]
) -> None:
    fork = store.fork("alice", sample_info("bob"), 2)
    kept, errors, stop = [*commits[:2]], [], threading.Event()

    def work() -> None:
        try:
            while not stop.is_set():
                kept.extend(fill(fork, 1))
                assert_equal(fork.read_kv(0, 0, 24), torch.cat([c.kv[0] for c in commits[:2]]))
                fork.merge(fork.info.n_tokens)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    for head in (8, 6, 5, 3):
        source.rollback(head)
        fill(source, 1)
    source.close()
    store.delete("alice")
    stop.set()
    thread.join()
    assert errors == []
    assert_holds(fork, kept)
    assert store.sessions() == [fork.info]
    assert store.verify() == []


def test_any_order_of_verbs_leaves_every_session_what_it_holds(path: Path) -> None:
    """A model of the store in plain lists, against the store; 90 verbs with each of three seeds."""
    for seed in range(3):
        random, held = Random(seed), dict[str, list[Commit]]()
        with SQLiteStore(path / str(seed), merge_bytes=10_000) as store:
            handles = {"0": store.create(sample_info("0"))}
            held["0"] = []
            for step in range(1, 90):
                name = random.choice(sorted(held))
                handle, made = handles[name], held[name]
                head = random.randint(0, len(made))
                match random.choice("cccccmmfrspde"):
                    case "c":
                        made += fill(handle, random.randint(1, 3), [random.randint(1, 9)])
                    case "m":
                        handle.merge(handle.info.n_tokens)
                    case "f" if len(held) < 6:
                        handles[str(step)] = store.fork(name, sample_info(str(step)), head)
                        held[str(step)] = made[:head]
                    case "r":
                        handle.rollback(head)
                        del made[head:]
                    case "s":
                        store.stage(handle, handle.info, head).close()
                    case "p":
                        staged = store.stage(handle, handle.info, head)
                        made[head:] = fill(staged, random.randint(0, 2), [random.randint(1, 9)])
                        store.publish(handle, staged)
                    case "d" if len(held) > 1:
                        handles.pop(name).close()
                        del held[name]
                        (store.erase if step % 2 else store.delete)(name)
                    case "e":
                        handle.close()
                        handles[name] = store.open(name)
            for name, made in held.items():
                if made:
                    assert_holds(handles[name], made)
                assert store.info(name) == handles[name].info
            assert store.verify() == []
            named = {extent.file.name for h in handles.values() for extent in h.claim.files.extents}  # type: ignore[attr-defined]
            assert names(path / str(seed)) == named


READS: dict[str, Callable[[SessionHandle], object]] = {
    "turns": lambda handle: handle.turns(),
    "turns_at": lambda handle: handle.turns_at([0, 5]),
    "point": lambda handle: handle.point(99),
    "points": lambda handle: handle.points(),
    "search": lambda handle: handle.search("turn", 9),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("verb", ["rollback", "publish"])
def test_who_reads_while_a_session_changes_its_past_sees_it_changed(
    store: SQLiteStore,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    read: Callable[[SessionHandle], object],
) -> None:
    handle = store.create(sample_info())
    fill(handle, 4)
    before, transaction = read(handle), store._database.transaction

    def change() -> object:
        monkeypatch.undo()
        if verb == "rollback":
            handle.rollback(1)
        else:
            staged = store.stage(handle, handle.info)
            fill(staged, 1, [9, 3])
            store.publish(handle, staged)
        return transaction()

    monkeypatch.setattr(store._database, "transaction", change)
    found = read(handle)
    assert found == read(handle)
    assert found != before or read is READS["turns_at"]


def test_threads_that_fork_commit_merge_and_roll_back_at_once_mix_nothing(path: Path) -> None:
    errors: list[BaseException] = []
    with SQLiteStore(path, merge_bytes=10_000) as store:
        root = store.create(sample_info())
        shared = fill(root, 5)
        assert root.merge(36)
        handles = {str(n): store.fork("alice", sample_info(str(n)), 4) for n in range(4)}

        def work(name: str) -> None:
            random, made = Random(name), shared[:4]
            try:
                handle = handles[name]
                for step in range(25):
                    match random.choice("ccmrpf"):
                        case "c":
                            made += fill(handle, 1, [random.randint(1, 9)])
                        case "m":
                            handle.merge(handle.info.n_tokens)
                        case "r":
                            head = random.randint(2, len(made))
                            handle.rollback(head)
                            del made[head:]
                        case "p":
                            staged = store.stage(handle, handle.info, 2)
                            made[2:] = fill(staged, 2, [random.randint(1, 9)])
                            store.publish(handle, staged)
                        case "f":
                            twin = store.fork(name, sample_info(f"{name} {step}"), len(made))
                            assert_holds(twin, made)
                            twin.close()
                            store.delete(f"{name} {step}")
                assert_holds(handle, made)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=[name]) for name in handles]
        for thread in threads:
            thread.start()
        root.rollback(1)
        root.close()
        store.erase("alice")
        for thread in threads:
            thread.join()
        assert errors == []
        assert store.verify() == []
