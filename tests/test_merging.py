"""A session's files are merged behind its back; what it says and remembers is the same."""

from __future__ import annotations

import logging
import threading
import time

import pytest
import torch
from conftest import SMALL, chatter

from longmem import CorruptDataError, Engine, merging
from longmem.stores import InMemoryStore, SQLiteStore
from longmem.stores import handle as handles

FEW = 200_000  # K/V bytes of some 49 tokens: two or three turns


@pytest.fixture
def eager(monkeypatch):
    """Sessions ask for a merge after every few exchanges."""
    monkeypatch.setattr(merging, "MERGE_EVERY", FEW)


def settle() -> None:
    """Wait until nothing is being merged."""
    deadline = time.monotonic() + 30
    while merging._background._thread is not None:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def files(store: SQLiteStore) -> int:
    return len(list((store.path / "files").iterdir()))


def talk(session, turns, wait=False):
    for role, text in turns:
        session.add(role, text)
        if wait:
            settle()


def test_a_session_that_is_merged_answers_as_one_that_is_not(engine, tmp_path, eager):
    turns, texts, snapshots = chatter(10), [], []
    for name, merge_bytes in (("plain", None), ("merged", FEW)):
        with SQLiteStore(tmp_path / name, merge_bytes=merge_bytes) as store:
            with engine.session("a", store=store) as session:
                talk(session, turns[:12])
            with engine.session("a", store=store) as session:
                talk(session, turns[20:])
                texts.append(session.ask("And then?", max_new_tokens=8, temperature=0).text)
                settle()
            assert store.verify() == []
            snapshots.append(store.open("a").snapshot())
            counts = files(store)
    assert counts < len(turns) / 2
    assert texts[0] == texts[1]
    for kind in ("blocks", "state"):
        plain, merged = (getattr(snapshot, kind) for snapshot in snapshots)
        assert plain.keys() == merged.keys()
        assert all(torch.equal(plain[name], merged[name]) for name in plain if name != "rng")


def test_only_closed_blocks_are_merged_and_they_end_where_a_file_ends(engine, tmp_path, eager):
    with (
        SQLiteStore(tmp_path / "s", merge_bytes=FEW) as store,
        engine.session("a", store=store) as session,
    ):
        talk(session, chatter(12), wait=True)
        memory = session._conversation.memory
        extents = session._conversation.ledger.handle.claim.files.extents
        merged = [extent for extent in extents if extent.commits > 1]
        assert len(merged) > 2
        assert all(extent.stop in memory.table.edges for extent in merged)
        assert merged[-1].stop <= memory.table.edges[memory.n_blocks]


def test_a_short_session_and_one_without_files_start_no_thread(engine, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(merging.Background, "put", lambda self, job: started.append(job))
    with SQLiteStore(tmp_path / "s") as store, engine.session("a", store=store) as session:
        talk(session, chatter(3))
    with engine.session("b") as session:
        talk(session, chatter(3))
    assert started == []


def test_a_store_in_memory_has_nothing_to_merge(engine, eager):
    with InMemoryStore() as store, engine.session("a", store=store) as session:
        talk(session, chatter(10))
        settle()
        assert session.stats().turns == 20


def test_a_merge_that_fails_is_logged_once_and_tried_again(
    engine, tmp_path, eager, monkeypatch, caplog
):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with (
        SQLiteStore(tmp_path / "s", merge_bytes=FEW) as store,
        engine.session("alice", store=store) as session,
    ):
        turns = chatter(16)
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(handles, "write_merged", full)
            talk(session, turns[:20], wait=True)
        (record,) = caplog.records
        assert "'alice'" in record.getMessage()
        assert "No space left" in record.getMessage()
        assert files(store) == 20
        talk(session, turns[20:], wait=True)
        assert files(store) < 16
        assert session.ask("Still there?", max_new_tokens=2).finish_reason == "length"
    with SQLiteStore(tmp_path / "s") as store:
        assert store.verify() == []


def test_a_file_that_vanished_is_named_and_the_session_goes_on(engine, tmp_path, eager, caplog):
    with (
        SQLiteStore(tmp_path / "s", merge_bytes=None) as store,
        engine.session("alice", store=store) as session,
    ):
        talk(session, chatter(6))
    with SQLiteStore(tmp_path / "s", merge_bytes=FEW) as store:
        with engine.session("alice", store=store) as session:
            handle = session._conversation.ledger.handle
            victim = store.path / "files" / handle.claim.files.extents[3].file.name
            victim.unlink()
            talk(session, [("user", "One more thing.")], wait=True)
            assert victim.name in caplog.text
            assert session.stats().turns == 13
            with pytest.raises(CorruptDataError, match=victim.name):
                handle.read_kv(0, 0, handle.info.n_tokens)
        with engine.session("bob", store=store) as other:
            talk(other, chatter(8), wait=True)
            assert other.stats().turns == 16


def test_closing_a_session_breaks_its_merge_off(engine, tmp_path, eager, monkeypatch):
    writing, closing = threading.Event(), threading.Event()
    original = handles.write_merged

    def slow(*args, **options):
        writing.set()
        assert closing.wait(30)
        return original(*args, **options)

    with SQLiteStore(tmp_path / "s", merge_bytes=FEW) as store:
        session = engine.session("a", store=store)
        handle = session._conversation.ledger.handle
        monkeypatch.setattr(handles, "write_merged", slow)
        turns = chatter(16)
        while not writing.wait(0.01):
            talk(session, [turns.pop(0)])
        thread = threading.Thread(target=session.close)
        thread.start()
        while not handle._leaving:
            time.sleep(0.001)
        closing.set()
        thread.join()
        settle()
        assert list((tmp_path / "s/tmp").iterdir()) == []
        assert store.verify() == []
        monkeypatch.undo()
        with engine.session("a", store=store) as again:
            assert again.stats().turns == 32 - len(turns)


def test_a_codec_lets_keys_and_values_of_closed_blocks_go(tmp_path, eager):
    engine = Engine.nano(SMALL.replace(codec="int8"))
    texts = []
    for name, merge_bytes in (("plain", None), ("merged", FEW)):
        with SQLiteStore(tmp_path / name, merge_bytes=merge_bytes) as store:
            with engine.session("a", store=store) as session:
                talk(session, chatter(12), wait=True)
            with engine.session("a", store=store) as session:
                texts.append(session.ask("And then?", max_new_tokens=8, temperature=0).text)
            files = store.open("a").claim.files.extents
            kept = [extent for extent in files if extent.file.kv]
            assert (len(kept) < len(files)) == (merge_bytes is not None)
            assert store.verify() == []
    assert texts[0] == texts[1]
