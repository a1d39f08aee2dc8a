"""Time travel: forks and rollbacks hold bit for bit what the session held at that turn."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
from conftest import SMALL, chatter
from timelines import differing, said, settle, state_of, with_gates

from longmem import (
    Engine,
    InputError,
    SessionClosedError,
    SessionError,
    SessionInUseError,
    SessionNotFoundError,
    SessionPool,
    StoreError,
    StoreReadOnlyError,
    merging,
)
from longmem.store import Record
from longmem.stores import InMemoryStore, SQLiteStore

CONFIGS = {
    "blocks": SMALL,
    "two levels": SMALL.replace(
        two_level_above=0, two_level_shelf=4, two_level_group=8, two_level_probe=2
    ),
    "int8": SMALL.replace(codec="int8"),
    "surprise": SMALL.replace(block_boundaries="surprise"),
    "dropped blocks": SMALL.replace(max_blocks=5),
    "recycled tokens": SMALL.replace(topk_tokens=24),
    "no host memory": SMALL.replace(host_bytes=0),
}
FEW = 200_000  # K/V bytes of some 49 tokens: two or three turns
MORE = 3 * FEW
SAMPLED = {"max_new_tokens": 8, "temperature": 1.0}


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    made = InMemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "store")
    with made:
        yield made


def lies_in_a_merged_file(session, turn):
    """Whether a file holds the commit that ends with this turn, and later ones."""
    handle = session._conversation.ledger.handle
    head = handle.point(turn + 1).head
    return any(e.first <= head < e.last for e in handle.claim.files.extents)


def travel(engine, store, merged=False):
    """[a, ok, FORK] after [a, b, c]: by a fork and by a rollback."""
    with engine.session("a", store=store, system="You are a clerk.") as session:
        for role, text in chatter(5):
            session.add(role, text)
        ok = session.ask("a", seed=7, **SAMPLED).turn
        before, told = state_of(engine, session), said(session)
        fork = session.ask("FORK", commit=False, **SAMPLED).text
        session.add(chatter(3, seed=50))
        session.ask("b", **SAMPLED)
        for role, text in chatter(3, seed=70):
            session.add(role, text)
        settle()
        assert not merged or lies_in_a_merged_file(session, ok)
        after = state_of(engine, session)

        read = engine.tokens_read
        with session.fork("f", at=ok) as forked:
            assert engine.tokens_read == read
            assert differing(before, state_of(engine, forked)) == []
            reply = forked.ask("FORK", **SAMPLED)
            assert said(forked) == [*told, ("user", "FORK"), ("assistant", fork)]
            assert reply.text == fork
        assert differing(after, state_of(engine, session)) == []

        read = engine.tokens_read
        session.rollback(ok)
        assert engine.tokens_read == read
        assert differing(before, state_of(engine, session)) == []
        assert session.ask("FORK", **SAMPLED).text == fork
        assert said(session) == [*told, ("user", "FORK"), ("assistant", fork)]
        end = state_of(engine, session)
    for id in ("a", "f"):
        with engine.session(id, store=store) as session:
            assert differing(end, state_of(engine, session)) == []
    assert store.verify() == []


@pytest.mark.parametrize("name", CONFIGS)
def test_a_fork_and_a_rollback_equal_the_session_at_that_turn(engine, name):
    with InMemoryStore() as store:
        travel(Engine(engine.model, engine.tokenizer, CONFIGS[name]), store)


@pytest.mark.parametrize("name", ["blocks", "two levels", "dropped blocks"])
def test_so_they_do_when_the_files_of_that_time_were_merged(engine, name, tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "MERGE_EVERY", FEW)
    with SQLiteStore(tmp_path / "s", merge_bytes=MORE) as store:
        travel(Engine(engine.model, engine.tokenizer, CONFIGS[name]), store, merged=True)


def test_so_does_a_compressive_memory(engine, tmp_path, monkeypatch):
    gated = with_gates(engine, tmp_path)
    monkeypatch.setattr(merging, "MERGE_EVERY", FEW)
    with SQLiteStore(tmp_path / "s", merge_bytes=MORE) as store:
        travel(Engine(engine.model, engine.tokenizer, gated), store, merged=True)


def test_keys_and_values_that_a_merge_dropped_are_missed_before_anything_changes(
    engine, tmp_path, monkeypatch
):
    monkeypatch.setattr(merging, "MERGE_EVERY", FEW)
    coded = Engine(engine.model, engine.tokenizer, CONFIGS["int8"])
    with SQLiteStore(tmp_path / "s", merge_bytes=FEW) as store:
        with coded.session("a", store=store) as session:
            for role, text in chatter(12):
                session.add(role, text)
                settle()
            before, told = state_of(coded, session), said(session)
            with pytest.raises(StoreError, match=r"rebuild|codec"):
                session.fork("f", at=7)
            with pytest.raises(StoreError, match=r"rebuild|codec"):
                session.rollback(7)
            assert differing(before, state_of(coded, session)) == [] and said(session) == told
            assert [info.id for info in store.sessions()] == ["a"]
            session.rollback(22)
            assert session.n_turns == 23
        assert store.verify() == []


def test_a_fork_may_be_made_while_a_reply_streams(engine, store):
    with engine.session("a", store=store) as session:
        session.add(chatter(3))
        told = said(session)
        stream = session.stream("Tell me of the lake.", max_new_tokens=8)
        pieces = iter(stream)
        next(pieces)
        with session.fork("f") as forked:
            assert said(forked) == told
            assert forked.ask("And you?", max_new_tokens=3).turn == 7
        assert "".join(pieces) in stream.reply.text
        assert session.n_turns == 8 and said(session)[6] == ("user", "Tell me of the lake.")


def test_the_past_cannot_change_while_a_reply_streams(engine, store):
    with engine.session("a", store=store) as session:
        session.add(chatter(2))
        session.add(chatter(2))
        stream = session.stream("Tell me of the lake.", max_new_tokens=8)
        pieces = iter(stream)
        next(pieces)
        for verb in (lambda: session.rollback(3), lambda: session.forget(1)):
            with pytest.raises(SessionInUseError, match=r"session 'a' is in the middle"):
                verb()
        list(pieces)
        assert session.n_turns == 10 and session.turns()[9].text == stream.reply.text
        session.rollback(3)
        assert said(session) == chatter(2)


def test_a_fork_and_a_rollback_end_behind_a_whole_exchange(engine, store):
    wrong = [
        (99, r"no turn 99; its turns are -1 \.\. 5"),
        (-2, r"no turn -2"),
        (4, r"turn 4 lies inside an exchange.*at turn 3 or 5"),
        (0, r"turn 0 lies inside an exchange.*at turn -1 or 3"),
        ("3", r"named by its index, not by '3'"),
        (True, r"named by its index, not by True"),
        (3.0, r"named by its index, not by 3\.0"),
    ]
    with engine.session("a", store=store) as session:
        session.add(chatter(2))
        session.ask("Now?", max_new_tokens=3)
        before, told = state_of(engine, session), said(session)
        for turn, message in wrong:
            with pytest.raises(InputError, match=message):
                session.fork("f", at=turn)
            with pytest.raises(InputError, match=message):
                session.rollback(turn)
        assert differing(before, state_of(engine, session)) == [] and said(session) == told
        assert [info.id for info in store.sessions()] == ["a"]
        assert [session.boundary(i) for i in range(-1, 6)] == [-1, -1, -1, -1, 3, 3, 5]


def test_a_rollback_of_everything_gives_a_new_session(engine, store):
    with engine.session("a", store=store, system="You are a clerk.") as session:
        session.ask("Hello?", max_new_tokens=3)
        session.rollback(-1)
        assert session.n_turns == 0 and session.turns() == [] and session.last_role is None
        assert session.stats().tokens == 0
        session.begin("You are a pirate.")
        session.ask("Hello?", max_new_tokens=3)
        assert [turn.role for turn in session.turns()] == ["system", "user", "assistant"]
        with session.fork("f", at=-1) as forked:
            assert forked.n_turns == 0
            forked.add("user", "Hi.")
    with engine.session("a", store=store) as session:
        assert session.system == "You are a pirate."
    assert store.verify() == []


def test_a_fork_takes_over_owner_and_details_unless_told_otherwise(engine, store):
    with engine.session("a", store=store, owner="ann", metadata={"x": 1}) as session:
        session.add(chatter(1))
        with session.fork() as same, session.fork("f", owner="bob", metadata={"y": 2}) as other:
            assert same.id.startswith("a~") and len(same.id) == 10
            assert (same.owner, other.owner, other.id) == ("ann", "bob", "f")
        found = {info.id: info for info in store.sessions()}
        assert found[same.id].metadata == {"x": 1} and found["f"].metadata == {"y": 2}
        assert found["f"].parent == "a" and found["f"].parent_turn == 1
        with pytest.raises(SessionInUseError):
            session.fork("f")
        with pytest.raises(InputError, match="path"):
            session.fork("a/b")
        assert len(store.sessions()) == 3


def test_a_state_that_cannot_be_read_leaves_the_session_as_it_was(engine, store, monkeypatch):
    def torn(*_):
        raise StoreError("torn")

    with engine.session("a", store=store) as session:
        session.add(chatter(2))
        session.add(chatter(2))
        before, told = state_of(engine, session), said(session)
        with monkeypatch.context() as patched:
            patched.setattr("longmem.timeline.resume", torn)
            for verb in (lambda: session.fork("f", at=3), lambda: session.rollback(3)):
                with pytest.raises(StoreError, match="torn"):
                    verb()
        assert differing(before, state_of(engine, session)) == [] and said(session) == told
        assert [info.id for info in store.sessions()] == ["a"]
        session.rollback(3)
    assert store.verify() == []


def test_a_session_without_a_store_has_no_past_to_go_to(engine):
    with engine.session("a") as session:
        session.add(chatter(1))
        for verb in (session.fork, lambda: session.rollback(-1), lambda: session.forget(0)):
            with pytest.raises(SessionError, match=r"session 'a' .*InMemoryStore"):
                verb()
        assert session.n_turns == 2
        session.erase()
        assert session.closed


def test_a_read_only_store_keeps_the_past(engine, tmp_path):
    with SQLiteStore(tmp_path / "s") as store, engine.session("a", store=store) as session:
        session.add(chatter(1))
        session.add(chatter(1))
    with SQLiteStore(tmp_path / "s", read_only=True) as store:
        with engine.session("a", store=store) as session:
            before = state_of(engine, session)
            for verb in (
                lambda: session.fork("f"),
                lambda: session.rollback(1),
                lambda: session.forget(1),
            ):
                with pytest.raises(StoreReadOnlyError):
                    verb()
            assert differing(before, state_of(engine, session)) == []
            with pytest.raises(StoreReadOnlyError):
                session.erase()
        assert store.info("a").n_turns == 4


def test_records_go_with_the_exchange_they_came_with(engine, store):
    def note(reply):
        return [Record("replies", f"turn {reply.turn}", reply.text)]

    with engine.session("a", store=store) as session:
        for _ in range(3):
            session.ask("Hello?", max_new_tokens=2, records=note)
        session.fork("f", at=3).close()
        assert [key for key, _ in store.records.list("replies")] == ["turn 1", "turn 3", "turn 5"]
        session.rollback(3)
        assert [key for key, _ in store.records.list("replies")] == ["turn 1", "turn 3"]


def test_a_closed_session_does_not_travel(engine, store):
    session = engine.session("a", store=store)
    session.add(chatter(1))
    session.close()
    verbs = [session.fork, session.erase, lambda: session.rollback(-1), lambda: session.forget(0)]
    for verb in [*verbs, lambda: session.recall("Hm?"), lambda: session.boundary(0)]:
        with pytest.raises(SessionClosedError, match="'a' is closed"):
            verb()
    assert store.info("a").n_turns == 2


def test_forks_made_while_another_thread_commits_hold_whole_exchanges(engine, store):
    with engine.session("a", store=store) as session:
        session.add(chatter(1))
        done = threading.Event()

        def talk():
            for i in range(8):
                session.add([("user", f"Number {i}."), ("assistant", "Noted.")])
            done.set()

        thread = threading.Thread(target=talk)
        thread.start()
        n = 0
        while not done.is_set() or n < 3:
            with session.fork(f"f{n}") as forked:
                turns = said(forked)
            assert len(turns) % 2 == 0 and turns == said(session)[: len(turns)]
            n += 1
        thread.join()
    assert store.verify() == []


def test_a_fork_takes_what_a_rollback_meanwhile_leaves(engine, store, monkeypatch):
    with engine.session("a", store=store) as session:
        for i in range(3):
            session.add([("user", f"Number {i}."), ("assistant", "Noted.")])
        forks = store.fork

        def late(*args, **options):
            monkeypatch.undo()
            session.rollback(1)
            return forks(*args, **options)

        monkeypatch.setattr(store, "fork", late)
        with session.fork("f") as forked:
            assert said(forked) == said(session) and forked.n_turns == 2
        session.add([("user", "More."), ("assistant", "Noted.")])
        monkeypatch.setattr(store, "fork", late)
        with pytest.raises(InputError, match="has no turn 3"):
            session.fork("g", at=3)
    assert store.verify() == []


def test_a_pool_forks_sessions_in_use_or_not(engine, store):
    with SessionPool(engine, store) as pool:
        with pool.session("a") as session:
            session.add(chatter(1))
            session.add(chatter(1))
            pool.fork("a", "f", at=1, owner="ann")
        pool.fork("a", "g")
        pool.evict("a")
        assert "a" not in pool.stats().resident
        pool.fork("a", "h")
        with pool.session("f", owner="ann") as forked:
            assert said(forked) == chatter(1)
            with pytest.raises(SessionInUseError, match="'f' is in use"):
                pool.evict("f")
        with pytest.raises(SessionNotFoundError):
            pool.fork("nobody", "i")
        assert sorted(info.id for info in store.sessions()) == ["a", "f", "g", "h"]


def test_a_leased_session_goes_back_forgets_and_is_erased_like_any_other(engine, store):
    with SessionPool(engine, store) as pool:
        with pool.session("a") as session:
            session.add(chatter(2))
            session.add(chatter(2))
            session.rollback(3)
            session.forget([0, 1])
            assert said(session) == chatter(2)[2:]
        with pool.session("a", create=False) as session:
            assert session.n_turns == 2
            session.erase()
            with pool.session("a") as again:
                assert again.n_turns == 0
                again.add(chatter(1))
        with pool.session("a") as session:
            assert said(session) == chatter(1)
        assert "a" in pool.stats().resident


def test_a_pool_tells_how_long_it_restored_and_where_blocks_were_found(engine, store):
    with SessionPool(engine, store) as pool:
        with pool.session("a") as session:
            session.add(chatter(10))
        assert pool.stats().restore_bytes == 0
        pool.evict("a")
        with pool.session("a") as session:
            session.ask("Who was there?", max_new_tokens=3)
        told = pool.stats()
        assert told.restore_seconds > 0 and told.restore_bytes > 0
        asked = sum(tier.hits + tier.misses for tier in told.tiers.values())
        assert asked > 0
        pool.evict("a")
        after = pool.stats()
        assert sum(tier.hits + tier.misses for tier in after.tiers.values()) == asked
        assert {tier.bytes for tier in after.tiers.values()} == {0}


def test_sampled_replies_after_a_rollback_are_those_of_then(engine, store):
    with engine.session("a", store=store) as session:
        session.add(chatter(1))
        first = [session.ask(text, **SAMPLED).text for text in ("One?", "Two?", "Three?")]
        session.rollback(3)
        assert [session.ask(text, **SAMPLED).text for text in ("Two?", "Three?")] == first[1:]
        session.rollback(1)
        assert [session.ask(text, **SAMPLED).text for text in ("One?", "Two?")] == first[:2]


def test_a_merge_that_was_asked_for_before_a_rollback_is_not_made_after_it(
    engine, tmp_path, monkeypatch
):
    monkeypatch.setattr(merging, "MERGE_EVERY", FEW)
    jobs = []
    with SQLiteStore(tmp_path / "s", merge_bytes=FEW) as store:
        coded = Engine(engine.model, engine.tokenizer, CONFIGS["int8"])
        with coded.session("a", store=store) as session:
            session.add(chatter(1))
            with monkeypatch.context() as patched:
                patched.setattr(merging._background, "put", jobs.append)
                for role, text in chatter(10):
                    session.add(role, text)
            assert jobs
            session.rollback(5)
            before = state_of(coded, session)
            for job in jobs:  # what left the window then stands in it again
                job()
        with coded.session("a", store=store) as session:
            assert differing(before, state_of(coded, session)) == []


def test_a_fork_outlives_its_source(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "MERGE_EVERY", FEW)
    with SQLiteStore(tmp_path / "s", merge_bytes=MORE) as store:
        session = engine.session("a", store=store)
        for role, text in chatter(8):
            session.add(role, text)
        settle()
        assert lies_in_a_merged_file(session, 5)
        with session.fork("f", at=5) as forked, forked.fork("g", at=3) as second:
            before = [state_of(engine, each) for each in (forked, second)]
            session.erase()
            for each, expected in zip((forked, second), before, strict=True):
                assert differing(expected, state_of(engine, each)) == []
        for id, expected in zip("fg", before, strict=True):
            with engine.session(id, store=store) as session:
                assert differing(expected, state_of(engine, session)) == []
                session.ask("And then?", max_new_tokens=3)
        assert store.verify() == []


def test_the_example_in_the_documentation_runs(capsys):
    text = (Path(__file__).parent.parent / "docs" / "history.md").read_text("utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    exec(compile(block, "docs/history.md", "exec"), {})
    assert "482913" in capsys.readouterr().out


def test_a_session_whose_store_alone_went_back_has_to_be_opened_again(engine, store, monkeypatch):
    with engine.session("a", store=store) as session:
        session.add(chatter(1))
        session.add(chatter(1))
        handle = session._conversation.ledger.handle
        rollback = handle.rollback

        def interrupted(head):
            rollback(head)
            raise KeyboardInterrupt

        monkeypatch.setattr(handle, "rollback", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.rollback(1)
        with pytest.raises(SessionError, match="open it again"):
            session.ask("Hello?")
    with engine.session("a", store=store) as session:
        assert said(session) == chatter(1)
        session.ask("Hello?", max_new_tokens=2)
