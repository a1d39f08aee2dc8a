"""Resuming: bit-equal logits in a new process, no token read again, and clear refusals."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SMALL, chatter
from safetensors.torch import load_file

from longmem import (
    CorruptDataError,
    Engine,
    FingerprintMismatchError,
    SessionError,
    SessionInUseError,
    StoreLockedError,
)
from longmem.feeding import Feed
from longmem.fingerprint import tokenizer_hash
from longmem.memory import ReadSpan
from longmem.stores import InMemoryStore, SQLiteStore

PROBE = list(range(40, 70))


def probe_logits(engine, session):
    """Logits of a fixed continuation, which is forgotten again: a look-up, then recycled steps."""
    memory = session._conversation.memory
    mark = memory.mark()
    rows = []
    for i, token in enumerate(PROBE):
        starts = [0] if i == 0 else []
        (fed,) = engine.forward([Feed(memory, [token], [ReadSpan(1, int(i % 5 == 0))], starts)])
        rows.append(fed.logits)
    memory.rewind(mark)
    return torch.stack(rows)


CHILD = """
import sys, torch
from safetensors.torch import save_file
sys.path.insert(0, {tests!r})
from conftest import SMALL
from test_resume import probe_logits
from longmem import Engine
from longmem.stores import SQLiteStore
torch.set_num_threads({threads})
engine = Engine.nano(SMALL)
with SQLiteStore({store!r}) as store, engine.session("a", store=store) as session:
    assert engine.tokens_read == 0, "resuming read tokens again"
    save_file({{"logits": probe_logits(engine, session)}}, {out!r})
"""


def test_a_new_process_goes_on_with_bit_equal_logits_and_reads_no_token_again(engine, tmp_path):
    with SQLiteStore(tmp_path / "s") as store, engine.session("a", store=store) as session:
        session.add("system", "You are a clerk.")
        for i in range(6):
            session.add(chatter(4, seed=i))
            session.ask("And then?", max_new_tokens=9, temperature=1.0, seed=i)
        assert session.stats().blocks > 20
        expected = probe_logits(engine, session)
    code = CHILD.format(
        tests=str(Path(__file__).parent),
        store=str(tmp_path / "s"),
        out=str(tmp_path / "logits.safetensors"),
        threads=torch.get_num_threads(),
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    assert torch.equal(load_file(tmp_path / "logits.safetensors")["logits"], expected)


def test_resuming_after_every_exchange_equals_never_closing(engine, tmp_path):
    questions = ["Who was there?", "And the lake?", "What did my aunt say?"]
    with engine.session("straight") as straight, InMemoryStore() as store:
        straight.add(chatter(8))
        with engine.session("a", store=store) as session:
            session.add(chatter(8))
        for question in questions:
            with engine.session("a", store=store) as session:
                reply = session.ask(question, max_new_tokens=10)
            assert reply.text == straight.ask(question, max_new_tokens=10).text
        with engine.session("a", store=store) as session:
            assert torch.equal(probe_logits(engine, session), probe_logits(engine, straight))


def test_blocks_are_read_from_the_store_only_when_looked_up(engine, tmp_path):
    with SQLiteStore(tmp_path / "s") as store:
        with engine.session("a", store=store) as session:
            session.add(chatter(30))
        with engine.session("a", store=store) as session:
            assert session.stats().bytes_host == 0
            session.ask("What now?", max_new_tokens=2)
            held = session.stats().bytes_host
            assert 0 < held < session.stats().bytes_disk / 4


def test_a_host_cache_of_zero_bytes_gives_the_same_reply(engine, tmp_path):
    none = Engine(engine.model, engine.tokenizer, SMALL.replace(host_bytes=0))
    with InMemoryStore() as store, none.session("a", store=store) as cold:
        cold.add(chatter(20))
        assert cold.stats().bytes_host == 0
        with engine.session("a") as warm:
            warm.add(chatter(20))
            assert torch.equal(probe_logits(none, cold), probe_logits(engine, warm))


def test_settings_that_decide_what_is_stored_are_refused_with_their_names(engine, tmp_path):
    other = Engine(engine.model, engine.tokenizer, SMALL.replace(n_local=48))
    with InMemoryStore() as store:
        with engine.session("a", store=store) as session:
            session.add(chatter(8))
            expected = session.turns()
        with pytest.raises(
            FingerprintMismatchError, match=r"n_local \(stored 64, now 48\).*rebuild"
        ):
            other.session("a", store=store)
        with engine.session("a", store=store) as session:
            assert session.turns() == expected


def test_one_changed_weight_is_noticed(engine):
    with InMemoryStore() as store:
        with engine.session("a", store=store) as session:
            session.add("user", "Hello.")
        model = copy.deepcopy(engine.model)
        with torch.no_grad():
            model.model.layers[2].self_attn.v_proj.weight[5, 7] += 0.01
        tuned = Engine(model, engine.tokenizer, SMALL)
        with pytest.raises(FingerprintMismatchError, match="weights"):
            tuned.session("a", store=store)


def test_a_rebuild_under_other_settings_equals_a_session_fed_the_same_turns(engine):
    other = Engine(engine.model, engine.tokenizer, SMALL.replace(n_local=48, topk=2))
    seen = []
    with InMemoryStore() as store:
        with engine.session("a", store=store, system="Be kind.") as session:
            session.add(chatter(10))
            session.ask("What now?", max_new_tokens=9)
            turns = session.turns()
            records = session._conversation.ledger.history.turns()
        with other.session(
            "a", store=store, rebuild=True, progress=lambda *at: seen.append(at)
        ) as rebuilt:
            assert rebuilt.turns() == turns and seen[-1][0] == seen[-1][1]
            fresh = other.new_memory(rebuilt._conversation.memory.table.n_init)
            from longmem.feeding import Segment

            spans = [[ReadSpan(*span) for span in r.spans] for r in records]
            other.read(fresh, [Segment(r.ids, s) for r, s in zip(records, spans, strict=True)])
            a = probe_logits(other, rebuilt)
            rebuilt._conversation.memory = fresh
            assert (a - probe_logits(other, rebuilt)).abs().max() < 1e-4
        with other.session("a", store=store) as again:
            assert again.turns() == turns


def test_a_rebuild_that_breaks_off_keeps_the_old_session(engine, tmp_path, monkeypatch):
    other = Engine(engine.model, engine.tokenizer, SMALL.replace(n_local=48))
    with SQLiteStore(tmp_path / "s") as store:
        with engine.session("a", store=store) as session:
            session.add(chatter(10))
            expected = probe_logits(engine, session)
        with monkeypatch.context() as patch:
            patch.setattr(other, "read", lambda *a, **k: (_ for _ in ()).throw(MemoryError("full")))
            with pytest.raises(MemoryError):
                other.session("a", store=store, rebuild=True)
    with SQLiteStore(tmp_path / "s") as store:
        assert store.verify() == []
        with engine.session("a", store=store) as session:
            assert torch.equal(probe_logits(engine, session), expected)


def test_a_damaged_file_is_an_error_and_a_rebuild_heals_it(engine, tmp_path):
    with SQLiteStore(tmp_path / "s") as store, engine.session("a", store=store) as session:
        session.add(chatter(10))
        expected = probe_logits(engine, session)
    (file,) = [f for f in (tmp_path / "s" / "files").rglob("*") if f.is_file()]
    data = bytearray(file.read_bytes())
    data[-100:] = bytes(100)
    file.chmod(0o600)
    file.write_bytes(data)
    with SQLiteStore(tmp_path / "s") as store:
        with pytest.raises(CorruptDataError, match="'a'"), engine.session("a", store=store) as s:
            s.ask("What now?", max_new_tokens=2)
        with engine.session("a", store=store, rebuild=True) as session:
            assert (probe_logits(engine, session) - expected).abs().max() < 1e-4
        assert store.verify() == []


def test_a_session_cannot_be_opened_twice_in_one_process(engine, tmp_path):
    with (
        SQLiteStore(tmp_path / "s") as store,
        engine.session("a", store=store),
        pytest.raises(SessionInUseError),
    ):
        engine.session("a", store=store)


def test_a_store_cannot_be_written_by_two_processes(engine, tmp_path):
    code = f"from longmem.stores import SQLiteStore\nSQLiteStore({str(tmp_path / 's')!r})"
    with SQLiteStore(tmp_path / "s"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and StoreLockedError.__name__ in done.stderr


def test_a_commit_that_fails_leaves_session_and_store_as_they_were(engine, tmp_path, monkeypatch):
    with SQLiteStore(tmp_path / "s") as store, engine.session("a", store=store) as session:
        session.add(chatter(6))
        expected = probe_logits(engine, session)
        with monkeypatch.context() as patch:
            patch.setattr(
                session._conversation.ledger.handle,
                "commit",
                lambda c: (_ for _ in ()).throw(OSError(28, "full")),
            )
            with pytest.raises(OSError, match="full"):
                session.ask("What now?", max_new_tokens=4)
        assert session.stats().turns == 12
        assert torch.equal(probe_logits(engine, session), expected)
        session.ask("What now?", max_new_tokens=4)
        assert store.verify() == []


def test_a_session_without_turns_belongs_to_whoever_writes_the_first(engine):
    other = Engine(engine.model, engine.tokenizer, SMALL.replace(n_local=48))
    with InMemoryStore() as store:
        engine.session("a", store=store).close()
        with other.session("a", store=store) as session:
            session.add(chatter(4))
        with other.session("a", store=store) as session:
            assert session.stats().turns == 8
        with pytest.raises(FingerprintMismatchError):
            engine.session("a", store=store)


def test_padding_set_by_somebody_else_does_not_change_the_tokenizers_hash(engine):
    before = tokenizer_hash(engine.tokenizer)
    tokenizer = copy.deepcopy(engine.tokenizer)
    tokenizer.backend_tokenizer.enable_padding(length=8)
    tokenizer.backend_tokenizer.enable_truncation(max_length=8)
    assert tokenizer_hash(tokenizer) == before
    tokenizer.add_tokens(["another"])
    assert tokenizer_hash(tokenizer) != before


def test_an_interrupt_after_the_commit_became_durable_keeps_the_exchange(engine, monkeypatch):
    with InMemoryStore() as store, engine.session("a", store=store) as session:
        session.add(chatter(4))
        handle = session._conversation.ledger.handle
        commit = handle.commit

        def interrupted(given):
            commit(given)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(handle, "commit", interrupted)
            with pytest.raises(KeyboardInterrupt):
                session.ask("What now?", max_new_tokens=3)
        assert session.stats().turns == 10
        session.ask("And now?", max_new_tokens=3)
        assert [t.index for t in session.turns()] == list(range(12))
        expected = probe_logits(engine, session)
        session.close()
        with engine.session("a", store=store) as again:
            assert torch.equal(probe_logits(engine, again), expected)


def test_a_commit_interrupted_while_memory_takes_note_of_it_is_resumed_as_it_was(
    engine, monkeypatch
):
    parts = [chatter(4, seed=seed) for seed in (0, 4, 8)]
    with engine.session("straight") as straight:
        for part in parts:
            straight.add(part)
        expected = probe_logits(engine, straight)
    with InMemoryStore() as store, engine.session("a", store=store) as session:
        session.add(parts[0])
        commits = {layer: layer.commit for layer in session._conversation.memory.full_layers}
        taken = []

        def commit(layer):
            if len(taken) == 1:
                raise KeyboardInterrupt
            taken.append(layer)
            commits[layer]()

        with monkeypatch.context() as patch:
            for layer in commits:
                patch.setattr(layer, "commit", lambda layer=layer: commit(layer))
            with pytest.raises(KeyboardInterrupt):
                session.add(parts[1])
        assert session.stats().turns == 16
        with pytest.raises(SessionError, match="open it again"):
            session.add(parts[2])
        session.close()
        with engine.session("a", store=store) as again:
            assert again.stats().turns == 16
            again.add(parts[2])
            assert torch.equal(probe_logits(engine, again), expected)
