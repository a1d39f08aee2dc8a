"""Forgetting turns, and erasing sessions: what is left, and what is not."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from conftest import SMALL, chatter
from timelines import differing, probe, said, state_of, with_gates

from longmem import Engine, InputError, SessionClosedError, StoreError
from longmem.feeding import Segment
from longmem.ledger import Draft
from longmem.memory import ReadSpan
from longmem.store import Record
from longmem.stores import InMemoryStore, SQLiteStore

CANARY = "xylophone"
CONFIGS = {
    "blocks": SMALL,
    "two levels": SMALL.replace(
        two_level_above=0, two_level_shelf=4, two_level_group=8, two_level_probe=2
    ),
    "dropped blocks": SMALL.replace(max_blocks=5),
}


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    made = InMemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "store")
    with made:
        yield made


def fed(engine, records):
    """A session that was told these turns, one by one, with their recorded ids and spans."""
    session = engine.session("fed")
    conversation = session._conversation
    for record in records:
        with conversation.transaction() as transaction:
            memory = conversation.memory_for(record.role, len(record.ids))
            spans = [ReadSpan(*span) for span in record.spans]
            engine.read(memory, [Segment(record.ids, spans)])
            transaction.commit([Draft(record.role, record.text, record.ids, spans)])
    return session


def assert_like(engine, session, other):
    """Same turns, same blocks, the same attention sums and logits to 1e-4."""
    assert said(session) == said(other)
    mine, its = session._conversation.memory, other._conversation.memory
    assert mine.n_tokens == its.n_tokens and mine.table.edges == its.table.edges
    for a, b in zip(mine.full_layers, its.full_layers, strict=True):
        torch.testing.assert_close(a.local.mass, b.local.mass, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(a.local.raw, b.local.raw, atol=1e-4, rtol=1e-4)
    for a, b in zip(mine.layers, its.layers, strict=True):
        if a.compressive is not None:
            assert a.compressive.state.tokens == b.compressive.state.tokens > 0
            torch.testing.assert_close(
                a.compressive.state.M, b.compressive.state.M, atol=1e-4, rtol=1e-4
            )
    (logits, blocks), (wanted, chosen) = probe(engine, session), probe(engine, other)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)
    assert blocks == chosen and any(blocks)


def talk(n, seed):
    """n user and n assistant turns in which no two blocks are alike: they would tie."""
    words = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [
        (role, " ".join("".join(words.choices(letters, k=words.randint(2, 7))) for _ in range(8)))
        for _ in range(n)
        for role in ("user", "assistant")
    ]


def converse(session):
    """Eighteen turns in eight commits."""
    session.add(talk(2, 0))
    session.ask("Who was there?", max_new_tokens=4, temperature=1.0, seed=1)
    for i in range(3):
        session.add(talk(1, 20 + i))
    session.ask("Where?", max_new_tokens=4, temperature=1.0)
    session.add(talk(1, 40))
    session.ask("And the lake?", max_new_tokens=4)


@pytest.mark.parametrize("name", [*CONFIGS, "compressive"])
def test_forgetting_equals_never_having_been_told(name, engine, tmp_path):
    config = CONFIGS[name] if name in CONFIGS else with_gates(engine, tmp_path)
    engine = Engine(engine.model, engine.tokenizer, config)
    with InMemoryStore() as store:
        with engine.session("a", store=store, system="You are a clerk.") as session:
            converse(session)
            records = session._conversation.ledger.history.turns()
        with engine.session("a", store=store) as session:  # as another day's process finds it
            read = engine.tokens_read
            session.forget([12, 3])
            left = [record for record in records if record.index not in (3, 12)]
            assert engine.tokens_read - read == sum(len(r.ids) for r in left if r.index > 0)
            with fed(engine, left) as wanted:
                assert_like(engine, session, wanted)
            assert [turn.index for turn in session.turns()] == list(range(len(left)))
            before = state_of(engine, session)
        with engine.session("a", store=store) as session:
            assert differing(before, state_of(engine, session)) == []
        assert store.verify() == []


def test_what_stands_before_the_first_forgotten_turn_is_not_read_again(engine, store):
    with engine.session("a", store=store, system="You are a clerk.") as session:
        converse(session)
        records = session._conversation.ledger.history.turns()
        told = []
        read = engine.tokens_read
        session.forget(15, progress=lambda *at: told.append(at))
        rest = sum(len(record.ids) for record in records[16:])
        assert engine.tokens_read - read == rest
        assert told[-1] == (rest, rest) and len(told) == 2
        with fed(engine, [*records[:15], *records[16:]]) as wanted:
            assert_like(engine, session, wanted)


def test_commits_end_where_they_ended(engine, store):
    with engine.session("a", store=store) as session:
        converse(session)
        session.forget([1, 4, 5])  # one of the first commit, all of the second
        ends = [session.boundary(i) for i in range(session.n_turns)]
        assert sorted(set(ends)) == [-1, 2, 4, 6, 8, 10, 12, 14]
        session.rollback(8)
        with session.fork(at=4) as forked:
            assert said(forked) == said(session)[:5]
    assert store.verify() == []


def test_random_numbers_go_on_after_forgetting(engine, store):
    with engine.session("a", store=store) as session:
        converse(session)
        expected = session._conversation.generator.get_state()
        session.forget(2)
        assert torch.equal(session._conversation.generator.get_state(), expected)


def test_all_turns_may_be_forgotten(engine, store):
    with engine.session("a", store=store) as session:
        session.add(chatter(2))
        session.ask("Hm?", max_new_tokens=2)
        session.forget(range(6))
        assert session.turns() == [] and session.stats().tokens == 0
        session.add(chatter(1))
    with engine.session("a", store=store) as session:
        assert said(session) == chatter(1)
    assert store.verify() == []


def test_the_new_first_turn_gets_what_the_template_writes_before_everything(engine, store):
    tokenizer = copy.deepcopy(engine.tokenizer)
    tokenizer.chat_template = "Once upon a time.\n" + tokenizer.chat_template
    other = Engine(engine.model, tokenizer, SMALL)
    with other.session("a", store=store) as session:
        session.add(chatter(3))
        ids = [list(record.ids) for record in session._conversation.ledger.history.turns()]
        session.forget([0, 1])
        after = [list(record.ids) for record in session._conversation.ledger.history.turns()]
        assert after[0] == other.chat.turn_ids("user", session.turns()[0].text, previous=None)
        assert len(after[0]) > len(ids[2]) and after[0][-len(ids[2]) :] == ids[2]
        assert after[1:] == ids[3:]


def test_what_cannot_be_forgotten_is_refused_and_nothing_changes(engine, store):
    wrong = [
        (99, r"has no turn 99; its turns are 0 \.\. 4"),
        (-1, r"no turn -1"),
        ([1, 99], r"no turn 99"),
        (True, r"not by True"),
        ("1", r"not by '1'"),
        (1.0, r"not by 1\.0"),
        ([[1]], r"not by \[1\]"),
        (0, r"system turn"),
    ]
    with engine.session("a", store=store, system="You are a clerk.") as session:
        session.add(chatter(2))
        before, told = state_of(engine, session), said(session)
        for turns, message in wrong:
            with pytest.raises(InputError, match=message):
                session.forget(turns)
        session.forget([])
        assert differing(before, state_of(engine, session)) == [] and said(session) == told


@pytest.mark.parametrize("where", ["read", "publish", "stage"])
def test_a_failure_in_the_middle_leaves_the_session_as_it_was(engine, store, monkeypatch, where):
    with engine.session("a", store=store) as session:
        converse(session)
        before, told = state_of(engine, session), said(session)
        calls = []

        def failing(*args, **options):
            calls.append(args)
            if where == "read" and len(calls) < 3:
                return reads(*args, **options)
            raise StoreError("the disk is gone")

        reads = engine.read
        with monkeypatch.context() as patched:
            patched.setattr(engine if where == "read" else store, where, failing)
            with pytest.raises(StoreError, match="the disk is gone"):
                session.forget(2)
        assert calls
        assert differing(before, state_of(engine, session)) == [] and said(session) == told
        session.ask("Still there?", max_new_tokens=3)
        session.forget(2)
        assert session.n_turns == len(told) + 1
    assert store.verify() == []


def test_records_of_an_exchange_go_when_it_loses_a_turn_and_others_stay(engine, store):
    with engine.session("a", store=store) as session:
        for i in range(4):
            session.ask(
                "Hello?",
                max_new_tokens=2,
                records=lambda _, i=i: [Record("r", str(i), f"text {i}")],
            )
        session.forget([2, 4, 5])
        assert store.records.list("r") == [("0", "text 0"), ("3", "text 3")]
        assert session.n_turns == 5
        session.rollback(2)
        assert store.records.list("r") == [("0", "text 0")]


def test_details_of_turns_stay(engine, store):
    with engine.session("a", store=store) as session:
        session.ask("One?", max_new_tokens=2, extra={"id": "m1"})
        session.ask("Two?", max_new_tokens=2, extra={"id": "m3"})
        times = [turn.created_at for turn in session.turns()]
        session.forget(0)
        assert [turn.extra.get("id") for turn in session.turns()] == ["m1", None, "m3"]
        assert [turn.created_at for turn in session.turns()] == times[1:]


def found_in(path, *needles):
    """Files below a folder that hold one of the byte strings."""
    files = [file for file in path.rglob("*") if file.is_file()]
    return [file.name for file in files if any(n in file.read_bytes() for n in needles)]


def ids_as_stored(session, index):
    """The token ids of a turn, in the forms a store may write them."""
    ids = session._conversation.ledger.history.turns(index, index + 1)[0].ids
    return [
        torch.tensor(ids, dtype=kind).numpy().tobytes() for kind in (torch.int32, torch.int64)
    ] + [",".join(map(str, ids)).encode()]


@pytest.mark.parametrize("how", ["forget", "erase"])
def test_nothing_of_it_is_left_to_be_found_under_the_store(engine, tmp_path, how):
    path = tmp_path / "s"
    with SQLiteStore(path) as store:
        with engine.session("b", store=store) as other:
            other.add(chatter(1))
        session = engine.session("a", store=store)
        session.add(chatter(2))
        session.ask(
            f"Where is the {CANARY}?",
            max_new_tokens=3,
            records=lambda reply: [Record("replies", "1", f"It is the {CANARY}")],
        )
        session.add(chatter(1))
        needles = [CANARY.encode(), *ids_as_stored(session, 4)]
        assert found_in(path, *needles)
        if how == "forget":
            session.forget([4, 5])
            assert found_in(path, *needles) == []
            assert said(session) == [*chatter(2), *chatter(1)]
            session.close()
        else:
            session.erase()
            assert session.closed
            with pytest.raises(SessionClosedError):
                session.turns()
            assert found_in(path, *needles) == []
            assert [info.id for info in store.sessions()] == ["b"]
    assert found_in(path, *needles) == []


def test_forgetting_that_could_not_scrub_is_made_up_for_when_the_store_is_opened(
    engine, tmp_path, monkeypatch
):
    path = tmp_path / "s"
    with SQLiteStore(path) as store, engine.session("a", store=store) as session:
        session.add(chatter(1))
        session.add([("user", "The password is zanzibar7."), ("assistant", "Noted.")])
        session.add(chatter(1, seed=3))

        def scrub():
            raise StoreError("another process is reading")

        monkeypatch.setattr(store, "scrub", scrub)
        with pytest.raises(StoreError, match="another process is reading"):
            session.forget(2)
        assert session.n_turns == 5
    assert found_in(path, b"zanzibar7")
    with SQLiteStore(path):
        assert found_in(path, b"zanzibar7") == []


def test_an_erased_session_begins_anew_under_its_id(engine, store):
    session = engine.session("a", store=store, system="You are a clerk.")
    converse(session)
    session.erase()
    with engine.session("a", store=store) as again:
        assert again.turns() == [] and again.system is None
        again.ask("Hello?", max_new_tokens=2)
    assert store.verify() == []


def test_erasing_cancels_a_reply_under_way(engine, store):
    session = engine.session("a", store=store)
    stream = session.stream("Tell me of the lake.", max_new_tokens=50)
    next(iter(stream))
    session.erase()
    assert store.sessions() == []


@pytest.mark.parametrize("how", ["closed", "interrupted"])
def test_forgetting_that_is_broken_off_changes_nothing(engine, store, how):
    session = engine.session("a", store=store)
    converse(session)
    before, told = state_of(engine, session), said(session)

    def progress(done, total):
        if how == "interrupted":
            raise KeyboardInterrupt
        session.close()

    with pytest.raises(KeyboardInterrupt if how == "interrupted" else SessionClosedError):
        session.forget(2, progress=progress)
    if how == "interrupted":
        assert differing(before, state_of(engine, session)) == []
        session.close()
    with engine.session("a", store=store) as session:
        assert differing(before, state_of(engine, session)) == [] and said(session) == told
    assert store.verify() == []
