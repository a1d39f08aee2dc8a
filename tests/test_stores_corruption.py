"""Whatever happens to a file behind the store's back, it raises and is never served."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from longmem.errors import CorruptDataError, StoreFormatError
from longmem.store import SessionHandle
from longmem.stores import SQLiteStore
from longmem.stores.header import entries_of
from longmem.stores.open_file import TurnFile
from longmem.stores.samples import assert_equal, fill, sample_commit, sample_info
from longmem.stores.turn_file import CHUNK_ROWS, Identity, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with one session, "alice", of one commit of 12 tokens."""
    with SQLiteStore(tmp_path / "store") as store:
        fill(store.create(sample_info()), 1)
    return tmp_path / "store"


def only_file(path: Path) -> Path:
    (file,) = (path / "files").iterdir()
    return file


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def truncate_to_nothing(file: Path) -> None:
    os.truncate(file, 0)


def zero_the_tail(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:-64] + bytes(64))


def append_bytes(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"more")


def claim_a_huge_header(file: Path) -> None:
    file.write_bytes((2**62).to_bytes(8, "little") + file.read_bytes()[8:])


def garble_the_header(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:8] + b"\xff" * 20 + data[28:])


DAMAGES = [
    truncate,
    truncate_to_nothing,
    zero_the_tail,
    append_bytes,
    claim_a_huge_header,
    garble_the_header,
    Path.unlink,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_file_raises_naming_session_file_and_remedy(
    damage: Callable[[Path], None], path: Path
) -> None:
    file = only_file(path)
    damage(file)
    with SQLiteStore(path) as store, pytest.raises(CorruptDataError) as caught:
        handle = store.open("alice")
        handle.snapshot()
        handle.read_kv(2, 0, 12)
    for part in ("'alice'", file.name, "backup", "rebuild=True"):
        assert part in str(caught.value)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_verify_reports_a_damaged_file_and_goes_on(
    damage: Callable[[Path], None], path: Path
) -> None:
    file = only_file(path)
    damage(file)
    with SQLiteStore(path) as store:
        fill(store.create(sample_info("bob")), 2)
        (problem,) = store.verify()
        assert (problem.session, problem.file) == ("alice", file.name)
        assert store.verify("alice") == [problem]
        assert store.verify("bob") == []


def test_a_session_with_a_damaged_file_still_tells_its_turns(path: Path) -> None:
    only_file(path).unlink()
    with SQLiteStore(path) as store:
        handle = store.open("alice")
        assert handle.turns() == sample_commit(sample_info()).turns


def test_a_flipped_bit_in_any_byte_is_found(tmp_path: Path) -> None:
    commit = sample_commit(sample_info(), [3])
    tensors = {"kv.0": commit.kv[0], "blocks.b": commit.kv[1], "state.s": commit.state["scores"]}
    row = write(tmp_path / "f", tensors, Identity("store", "alice", "layout", 0, 3))
    clean = (tmp_path / "f").read_bytes()
    TurnFile(tmp_path / "f", row).check()
    missed = []
    for at in range(len(clean)):
        flipped = clean[at] ^ (1 << at % 8)
        (tmp_path / "f").write_bytes(clean[:at] + bytes([flipped]) + clean[at + 1 :])
        try:
            TurnFile(tmp_path / "f", row).check()
            missed.append(at)
        except CorruptDataError:
            pass
    assert missed == []


@pytest.mark.parametrize("name", ["kv.0", "kv.1", "kv.2", "blocks.table", "state.scores"])
def test_a_flipped_bit_in_a_tensor_is_found_when_that_tensor_is_read(name: str, path: Path) -> None:
    flip_in_tensor(only_file(path), name)
    with SQLiteStore(path) as store:
        handle = store.open("alice")
        reads: dict[str, Callable[[], object]] = {
            **{f"kv.{layer}": lambda at=layer: handle.read_kv(at, 0, 12) for layer in range(3)},
            "snapshot": handle.snapshot,
        }
        hit = name if name.startswith("kv") else "snapshot"
        for read, function in reads.items():
            if read != hit:
                function()
        with pytest.raises(CorruptDataError, match="checksum"):
            reads[hit]()


def flip_in_tensor(file: Path, name: str, row: int = 0) -> None:
    data = bytearray(file.read_bytes())
    header = bytes(data[: 8 + int.from_bytes(data[:8], "little")])
    entry = entries_of(header, CHUNK_ROWS)[name]
    data[entry.offset + row * (entry.nbytes // entry.shape[0])] ^= 16
    file.write_bytes(data)


def test_reading_rows_checks_only_the_chunks_that_hold_them(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "store") as store:
        (commit,) = fill(store.create(sample_info()), 1, [5 * CHUNK_ROWS])
    flip_in_tensor(only_file(tmp_path / "store"), "kv.1", row=2 * CHUNK_ROWS + 3)
    with SQLiteStore(tmp_path / "store") as store:
        handle = store.open("alice")
        for start, stop in [(0, 2 * CHUNK_ROWS), (3 * CHUNK_ROWS, 5 * CHUNK_ROWS)]:
            assert_equal(handle.read_kv(1, start, stop), commit.kv[1][start:stop])
        for start, stop in [(2 * CHUNK_ROWS - 1, 2 * CHUNK_ROWS + 1), (3 * CHUNK_ROWS - 1, 300)]:
            with pytest.raises(CorruptDataError):
                handle.read_kv(1, start, stop)


def test_a_file_damaged_while_it_is_open_raises(path: Path) -> None:
    with SQLiteStore(path) as store:
        handle = store.open("alice")
        handle.read_kv(0, 0, 3)
        os.truncate(only_file(path), 100)
        with pytest.raises(CorruptDataError, match="ends too early"):
            handle.read_kv(0, 0, 3)


def test_another_sessions_file_is_recognised(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "store") as store:
        alice, carol = store.create(sample_info("alice")), store.create(sample_info("carol"))
        fill(alice, 1)
        of_alice = only_file(tmp_path / "store")
        fill(carol, 1)
        (of_carol,) = set((tmp_path / "store/files").iterdir()) - {of_alice}
        swap(of_alice, of_carol)
        for handle, other in ((alice, "'carol'"), (carol, "'alice'")):
            with pytest.raises(CorruptDataError, match=f"written for session {other}"):
                handle.read_kv(0, 0, 1)


def test_the_same_sessions_file_of_another_store_is_recognised(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with SQLiteStore(tmp_path / name) as store:
            fill(store.create(sample_info()), 1)
    swap(only_file(tmp_path / "one"), only_file(tmp_path / "two"))
    with SQLiteStore(tmp_path / "one") as store, pytest.raises(CorruptDataError, match="of store"):
        store.open("alice").snapshot()


def test_two_files_of_one_session_are_not_taken_for_each_other(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "store") as store:
        handle = store.create(sample_info())
        fill(handle, 2)
        swap(*(tmp_path / "store/files").iterdir())
        for read in (handle.snapshot, lambda: handle.read_kv(0, 0, 1)):
            with pytest.raises(CorruptDataError):
                read()


def swap(left: Path, right: Path) -> None:
    kept = left.read_bytes()
    left.write_bytes(right.read_bytes())
    right.write_bytes(kept)


def edit(path: Path, sql: str) -> None:
    """Change the database of a closed store behind its back."""
    with sqlite3.connect(path / "longmem.db") as connection:
        connection.executescript(sql)
    connection.close()


def test_a_row_that_points_to_another_sessions_file_is_not_followed(path: Path) -> None:
    with SQLiteStore(path) as store:
        fill(store.create(sample_info("bob")), 1)
    edit(path, "UPDATE commits SET file = 3 - file")
    with SQLiteStore(path) as store:
        handle = store.open("alice")
        for read in (handle.snapshot, lambda: handle.read_kv(0, 0, 1)):
            with pytest.raises(CorruptDataError, match="'bob'"):
                read()
        assert {problem.session for problem in store.verify()} == {"alice", "bob"}


@pytest.mark.parametrize(
    ("sql", "use"),
    [
        ("UPDATE turns SET text = 'forged' WHERE idx = 1", lambda handle: handle.turns()),
        ("UPDATE turns SET ids = zeroblob(20) WHERE idx = 1", lambda handle: handle.turns_at([8])),
        ("DELETE FROM turns WHERE idx = 1", lambda handle: handle.turns()),
        ("DELETE FROM turns", lambda handle: handle.turns_at([8])),
        ("DELETE FROM commits", lambda handle: handle.snapshot()),
        ("DELETE FROM commits", lambda handle: handle.read_kv(0, 3, 4)),
        ("UPDATE commits SET stop = 5", lambda handle: handle.read_kv(0, 3, 12)),
        ("UPDATE sessions SET n_tokens = 13", lambda handle: handle.read_kv(0, 3, 13)),
        (
            "UPDATE sessions SET n_tokens = 99; UPDATE commits SET stop = 99",
            lambda handle: handle.read_kv(0, 3, 13),
        ),
        ("UPDATE sessions SET metadata = '{}'", lambda handle: handle.info),
        ("UPDATE files SET checksums = zeroblob(4)", lambda handle: handle.snapshot()),
    ],
)
def test_altered_rows_raise_and_are_reported(
    sql: str, use: Callable[[SessionHandle], object], path: Path
) -> None:
    edit(path, sql)
    with SQLiteStore(path) as store:
        with pytest.raises(CorruptDataError, match="alice"):
            use(store.open("alice"))
        assert "alice" in {problem.session for problem in store.verify()}


def test_an_altered_record_raises_and_is_reported(path: Path) -> None:
    with SQLiteStore(path) as store:
        store.records.put("space", "key", {"a": 1}, session="alice")
        store.records.put("space", "other", 2)
    edit(path, "UPDATE records SET value = '{}' WHERE key = 'key'")
    with SQLiteStore(path) as store:
        for read in (
            lambda: store.records.get("space", "key"),
            lambda: store.records.list("space"),
        ):
            with pytest.raises(CorruptDataError, match="'key'"):
                read()
        assert store.records.get("space", "other") == 2
        assert [problem.session for problem in store.verify()] == ["alice"]


def test_a_damaged_database_raises_and_is_reported(path: Path) -> None:
    with SQLiteStore(path) as store:
        for number in range(50):
            store.records.put("space", str(number), "x" * 2000)
    database = path / "longmem.db"
    whole = database.read_bytes()
    database.write_bytes(whole[: len(whole) // 2] + b"\xa5" * (len(whole) // 2))
    for read_only in (True, False):
        with SQLiteStore(path, read_only=read_only) as store:
            assert "longmem.db" in {problem.file for problem in store.verify()}
            with pytest.raises(CorruptDataError, match="backup"):
                store.records.list("space")
    database.write_bytes(whole[:4096] + b"\xa5" * (len(whole) - 4096))
    for read_only in (True, False):
        with pytest.raises((CorruptDataError, StoreFormatError), match=r"longmem\.db"):
            SQLiteStore(path, read_only=read_only)


def test_a_store_that_lost_its_database_is_not_taken_for_a_new_one(path: Path) -> None:
    file = only_file(path)
    for loss in (lambda: os.truncate(path / "longmem.db", 0), (path / "longmem.db").unlink):
        loss()
        for read_only in (False, True):
            with pytest.raises(StoreFormatError, match="longmem"):
                SQLiteStore(path, read_only=read_only)
        assert file.exists(), "its turn files must not be collected as orphans"


def test_a_commit_after_damage_elsewhere_still_works(path: Path) -> None:
    only_file(path).unlink()
    with SQLiteStore(path) as store:
        handle = store.open("alice")
        late = sample_commit(handle.info)
        handle.commit(replace(late, blocks={}))
        assert_equal(handle.read_kv(0, 12, 24), late.kv[0])
        assert torch.is_tensor(handle.read_kv(1, 20, 24))
