"""Whole conversations read into a store: stored sessions again, and transcripts."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import SMALL, chatter

from longmem import Engine, Session, TurnTooLargeError
from longmem import rebuild as rebuilding
from longmem.opening import session_info
from longmem.store import SessionInfo
from longmem.stores import InMemoryStore, SQLiteStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    with SQLiteStore(tmp_path / "store") as store:
        yield store


def rng(session: Session) -> torch.Tensor:
    return session._conversation.generator.get_state()


def commits(store: SQLiteStore) -> int:
    (info,) = store.sessions()
    return info.head


def test_random_numbers_go_on_after_a_rebuild(engine: Engine, store: SQLiteStore) -> None:
    with engine.session("a", store=store) as session:
        session.ask("Hello.", max_new_tokens=8, temperature=1.0, seed=7)
        expected = rng(session)
    with engine.session("a", store=store, rebuild=True) as session:
        assert torch.equal(rng(session), expected)
    with engine.session("a", store=store) as session:
        assert torch.equal(rng(session), expected)


def test_a_damaged_session_is_rebuilt_with_new_random_numbers(
    engine: Engine, tmp_path: Path
) -> None:
    with SQLiteStore(tmp_path / "s") as store, engine.session("a", store=store) as session:
        session.add(chatter(2))
        before = session.turns()
    (file,) = (tmp_path / "s" / "files").iterdir()
    file.unlink()
    with SQLiteStore(tmp_path / "s") as store:
        with engine.session("a", store=store, rebuild=True) as session:
            assert session.turns() == before
        assert store.verify() == []


def test_another_template_changes_the_ids_and_nothing_else(
    engine: Engine, store: SQLiteStore
) -> None:
    with engine.session("a", store=store, owner="o", metadata={"m": 1}) as session:
        session.add("system", "Be kind.")
        session.ask("Hello.", max_new_tokens=8, temperature=1.0, seed=7)
        before, numbers = session.turns(), rng(session)
    tokenizer = copy.deepcopy(engine.tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("\\n", "\\n\\n")
    other = Engine(engine.model, tokenizer, SMALL)
    with other.session("a", store=store, rebuild=True) as session:
        after = session.turns()
        assert torch.equal(rng(session), numbers)
    assert [(t.role, t.text, t.created_at, t.extra) for t in after] == [
        (t.role, t.text, t.created_at, t.extra) for t in before
    ]
    assert all(new.tokens > old.tokens for new, old in zip(after, before, strict=True))
    (info,) = store.sessions("o")
    assert info.metadata == {"m": 1}


def test_commits_end_where_they_ended_and_progress_moves_within_and_across_them(
    engine: Engine, store: SQLiteStore
) -> None:
    with engine.session("a", store=store) as session:
        session.add(chatter(40))
        session.add(chatter(20))
        tokens = session.stats().tokens
        points = session._conversation.ledger.handle.points()
    assert commits(store) == 2
    quick = Engine(engine.model, engine.tokenizer, SMALL, segment_tokens=tokens // 8)
    seen: list[tuple[int, int]] = []
    quick.session("a", store=store, rebuild=True, progress=lambda *at: seen.append(at)).close()
    with engine.session("a", store=store) as session:
        assert session._conversation.ledger.handle.points() == points
    done = [at for at, _ in seen]
    assert len(done) >= 8 and done == sorted(set(done))
    assert done[-1] == tokens and {total for _, total in seen} == {tokens}


def test_a_system_turn_that_no_longer_fits_keeps_the_old_session(
    engine: Engine, store: SQLiteStore
) -> None:
    with engine.session("a", store=store, system="Be kind and brief, and answer.") as session:
        before = session.turns()
    tight = Engine(engine.model, engine.tokenizer, SMALL.replace(max_init=8))
    with pytest.raises(TurnTooLargeError, match=r"session 'a': .* max_init = 8"):
        tight.session("a", store=store, rebuild=True)
    with engine.session("a", store=store) as session:
        assert session.turns() == before
    assert store.verify() == []


def test_a_transcript_read_in_batches_equals_turns_added_at_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [("system", "Be kind."), *chatter(20)]
    monkeypatch.setattr(rebuilding, "_TOKENS_PER_COMMIT", 200)
    with InMemoryStore() as store:
        handle = store.create(
            session_info(engine, SessionInfo("a", None, {}, {}, (), "", 0.0, 0.0))
        )
        rebuilding.read_transcript(engine, store, handle, turns)
        assert handle.info.head > 3
        handle.close()
        with engine.session("a", store=store) as read, engine.session("b") as added:
            added.add(turns)
            assert [(t.role, t.text) for t in read.turns()] == turns
            assert read.stats().tokens == added.stats().tokens
            question = "What did you say about the things?"
            answers = [s.ask(question, max_new_tokens=12) for s in (read, added)]
            assert answers[0].text == answers[1].text
            places = [[each.turn.index for each in reply.recalled] for reply in answers]
            assert places[0] == places[1]
