"""Stored histories that benchmarks share, and what the system counts of a process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from conftest import SMALL

from longmem import ConfigError, Engine
from longmem.bench.chat_stream import Talk
from longmem.bench.dense import Dense
from longmem.bench.footprint import FilesWritten, bytes_written, on_disk, resident
from longmem.bench.shelf import SESSION, Shelf, opened, taken
from longmem.bench.stream import stream
from longmem.stores import SQLiteStore


@pytest.fixture(scope="module")
def shelf(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """Histories of 120 and 400 tokens."""
    made = Shelf(tmp_path_factory.mktemp("shelf"), engine)
    made.fill([400, 120])
    return made


def test_a_shelf_holds_one_conversation_at_every_length(engine: Engine, shelf: Shelf) -> None:
    with opened(shelf, engine, [120, 400]) as sessions:
        short, long = (session.turns() for session in sessions.values())
        held = [session.stats().tokens for session in sessions.values()]
    assert [turn.text for turn in long[: len(short)]] == [turn.text for turn in short]
    assert 120 <= held[0] < 220 and 400 <= held[1] < 500


def test_what_lies_on_the_shelf_is_not_read_again(engine: Engine, shelf: Shelf) -> None:
    before = engine.tokens_read
    Shelf(shelf.folder, engine).fill([120, 400])
    assert engine.tokens_read == before
    shelf.fill([500])
    assert 0 < engine.tokens_read - before < 220
    assert shelf.lengths() == [120, 400, 500]


def test_what_is_taken_changes_nothing_on_the_shelf(engine: Engine, shelf: Shelf) -> None:
    with taken(shelf, 120) as folder:
        with SQLiteStore(folder) as store, engine.session(SESSION, store=store) as session:
            session.add("user", "Only here.")
            assert store.verify() == []
        with taken(shelf, 120) as other, SQLiteStore(other, read_only=True) as store:
            texts = [turn.text for turn in engine.session(SESSION, store=store).turns()]
        assert "Only here." not in texts
    assert not folder.exists()


def test_histories_of_another_layout_are_refused(engine: Engine, shelf: Shelf) -> None:
    other = Engine(engine.model, engine.tokenizer, SMALL.replace(n_local=48))
    with pytest.raises(ConfigError, match="read under another model or memory; take an empty"):
        Shelf(shelf.folder, other)


def test_a_stream_is_looked_at_from_begin_to_end(engine: Engine, tmp_path: Path) -> None:
    samples = stream(engine, Shelf(tmp_path / "shelf", engine), [150, 300])
    tokens = [sample.tokens for sample in samples]
    assert tokens == sorted(set(tokens)) and tokens[0] < 150 and 300 <= tokens[-1] < 400
    row = sum(spec.bytes_per_token for spec in engine.info.layers)
    assert [sample.kv_bytes for sample in samples] == [row * n for n in tokens]
    last = samples[-1]
    assert last.files_written >= last.file_bytes >= last.kv_bytes
    assert last.peak > 2**20 and last.bytes_device > 0 and last.database_bytes > 0
    found = on_disk(tmp_path / "shelf" / "300")
    assert (found.files, found.file_bytes) == (last.files, last.file_bytes)


def test_the_parts_of_a_talk_are_long_enough_and_never_the_same(engine: Engine) -> None:
    talk = Talk(engine)
    with engine.session("talk") as session:
        first, second = talk.part(session, 100), talk.part(session, 100)
        assert sum(turn.tokens for turn in session.add(first)) >= 100
    assert first != second and [role for role, _ in first[:2]] == ["user", "assistant"]


def test_files_that_come_by_a_rename_are_counted_though_they_go_again(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "files", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    counted = FilesWritten(folder)
    for place, size in ((folder, 3), (elsewhere, 5), (folder, 7)):
        (tmp_path / "new").write_bytes(bytes(size))
        os.rename(tmp_path / "new", place / "file")
    (folder / "file").unlink()
    counted.close()
    (tmp_path / "new").write_bytes(bytes(9))
    os.rename(tmp_path / "new", folder / "late")
    assert counted.sizes == [3, 7] and counted.bytes == 10


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs Linux")
def test_memory_and_bytes_written_are_those_of_this_process(tmp_path: Path) -> None:
    before, written = resident(), bytes_written()
    held = bytearray(os.urandom(1 << 20) * 32)
    (tmp_path / "file").write_bytes(held)
    after = resident()
    assert before.now is not None and after.now is not None and written is not None
    assert after.now - before.now > 24 << 20 and after.peak >= after.now
    assert (bytes_written() or 0) - written >= len(held)


def test_the_dense_twin_shares_weights_and_attends_to_everything(engine: Engine) -> None:
    twin = Dense(engine).model
    assert twin.get_input_embeddings().weight is engine.model.get_input_embeddings().weight
    ids = torch.tensor([[5, 9, 11, 3, 7, 7]])
    whole = twin(input_ids=ids).logits[0]
    parts = twin(input_ids=ids[:, :5], use_cache=True)
    last = twin(input_ids=ids[:, 5:], past_key_values=parts.past_key_values).logits[0]
    torch.testing.assert_close(last, whole[-1:], atol=1e-4, rtol=0)
    with engine.session("after") as session:  # the engine's own attention is as it was
        assert session.ask("Hello.", max_new_tokens=2).usage.generated > 0


def test_a_dense_history_is_as_long_and_as_large_as_it_says(engine: Engine) -> None:
    dense = Dense(engine)
    history = dense.history(70)
    layers = history.cache.layers
    assert sum(la.keys.nbytes + la.values.nbytes for la in layers) == dense.bytes_at(70)
    assert history.decode_ms(3) > 0 and history.read_seconds(10, 4) > 0
    assert history.tokens == history.cache.get_seq_length() == 70 + 4 + 10
