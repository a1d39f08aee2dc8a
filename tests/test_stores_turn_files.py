"""What lies in files/: plain safetensors, few of them open at a time, each known to its commit."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from longmem.stores import SQLiteStore
from longmem.stores import folder as folders
from longmem.stores.samples import assert_equal, assert_same, fill, sample_commit, sample_info

DESCRIPTORS = Path("/proc/self/fd")
counts_descriptors = pytest.mark.skipif(not DESCRIPTORS.exists(), reason="needs Linux's /proc")


def test_a_turn_file_is_plain_safetensors_with_its_identity(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "store") as store:
        (commit,) = fill(store.create(sample_info(dtype="bfloat16")), 1)
    (file,) = (tmp_path / "store/files").iterdir()
    expected = {f"kv.{layer}": rows for layer, rows in enumerate(commit.kv)}
    expected |= {f"blocks.{name}": tensor for name, tensor in commit.blocks.items()}
    expected |= {f"state.{name}": tensor for name, tensor in commit.state.items()}
    assert_same(load_file(file), expected)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    assert metadata["format"] == "longmem-turns/2"
    assert (metadata["session"], metadata["start"], metadata["stop"]) == ("alice", "0", "12")
    assert len(metadata["store"]) == 32


def test_file_names_tell_nothing_of_the_session(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "store") as store:
        fill(store.create(sample_info("../../secret")), 1)
    (file,) = (tmp_path / "store/files").iterdir()
    assert len(file.stem) == 32
    assert set(file.stem) <= set("0123456789abcdef")


def test_a_sessions_bytes_are_those_of_its_files(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "store") as store:
        handle = store.create(sample_info())
        fill(handle, 3)
        on_disk = sum(file.stat().st_size for file in (tmp_path / "store/files").iterdir())
        assert handle.info.bytes == on_disk
        assert [info.bytes for info in store.sessions()] == [on_disk]


@counts_descriptors
def test_few_files_stay_open_and_threads_read_through_their_closing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "OPEN_FILES", 3)
    errors: list[BaseException] = []
    with SQLiteStore(tmp_path / "store") as store:
        handle = store.create(sample_info())
        rows = torch.cat([commit.kv[0] for commit in fill(handle, 20)])
        before = len(os.listdir(DESCRIPTORS))

        def read(seed: int) -> None:
            try:
                for start in torch.randint(0, 200, [100], generator=_seeded(seed)).tolist():
                    assert_equal(handle.read_kv(0, start, start + 40), rows[start : start + 40])
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=read, args=[seed]) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len(os.listdir(DESCRIPTORS)) <= before + 3


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@counts_descriptors
def test_closing_a_store_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = len(os.listdir(DESCRIPTORS))
    with SQLiteStore(tmp_path / "store") as store:
        handle = store.create(sample_info())
        fill(handle, 3)
        handle.read_kv(0, 0, 36)
    assert len(os.listdir(DESCRIPTORS)) == before


def test_look_ups_use_an_index(tmp_path: Path) -> None:
    """None of the queries behind a read may scan a table that grows with the history."""
    statements: list[str] = []
    with SQLiteStore(tmp_path / "store") as store:
        with store._database.transaction() as rows:
            rows.set_trace_callback(statements.append)
        handle = store.create(sample_info())
        fill(handle, 2)
        handle.turns(1, 2)
        handle.turns_at([3])
        handle.close()
        store.open("alice").close()
        store.records.put("space", "key", 1, session="alice")
        store.records.get("space", "key")
        store.records.list("space", "k", after="k")
        store.records.list("space", "k", newest_first=True, limit=3)
        handle = store.fork("alice", sample_info("bob"), 2)
        handle.point(3)
        handle.points(1)
        handle.search("turn", 2)
        handle.rollback(1)
        handle.close()
        store.info("bob")
        store.sessions("owner")
        store.delete("alice")
    connection = sqlite3.connect(tmp_path / "store/longmem.db")
    plans = {
        statement: [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")]
        for statement in statements
        if statement.split()[0] in ("SELECT", "UPDATE", "DELETE")
    }
    connection.close()
    assert any("turns" in statement for statement in plans)
    scans = [
        (statement, plan)
        for statement, plan in plans.items()
        if any(step.startswith("SCAN") and not _bounded(step) for step in plan)
    ]
    assert scans == []


def _bounded(step: str) -> bool:
    """A queue, empty but for what is being done; or what the full-text index matches."""
    return "_queue" in step or "VIRTUAL TABLE INDEX" in step


def test_a_commit_of_another_dtype_is_read_back_in_its_own(tmp_path: Path) -> None:
    for dtype in ("float16", "bfloat16", "float64"):
        with SQLiteStore(tmp_path / dtype) as store:
            handle = store.create(sample_info(dtype=dtype))
            commit = sample_commit(handle.info, [130])
            handle.commit(commit)
            assert_equal(handle.read_kv(2, 60, 129), commit.kv[2][60:129])
