"""What a query brings to mind: by memory, and by words."""

from __future__ import annotations

import pytest
from conftest import SMALL, chatter
from timelines import differing, said, state_of

from longmem import Engine, InputError, SessionInUseError, StoreError
from longmem.stores import InMemoryStore, SQLiteStore

FACTS = {
    "The gate code is 4711.": "What is the gate code?",
    "The boat is called Marlin.": "What is the boat called?",
    "My locker code is 8823.": "What is my locker code?",
}


@pytest.fixture(scope="module", params=["memory", "sqlite"])
def store(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recall")
    with InMemoryStore() if request.param == "memory" else SQLiteStore(folder / "s") as made:
        yield made


@pytest.fixture(scope="module")
def long_ago(engine, store):
    """A session that was told facts between chatter, long ago."""
    with engine.session("a", store=store) as session:
        for i, fact in enumerate(FACTS):
            session.add([("user", fact), ("assistant", "Noted."), *chatter(3, seed=100 * i)])
        session.add(chatter(6, seed=900))
        yield session


@pytest.fixture
def told(long_ago):
    """A session of that past for one test."""
    with long_ago.fork() as session:
        yield session


def test_memory_finds_the_turn_a_question_is_about(engine, told):
    before, turns = state_of(engine, told), said(told)
    for fact, question in FACTS.items():
        found = [each for each in told.recall(question, 5) if each.source == "memory"]
        assert found[0].turn.text == found[0].snippet == fact
        scores = [each.score for each in found]
        assert 1 < len(found) <= 5 and scores == sorted(scores, reverse=True)
        assert 0 < scores[0] <= 1
    assert differing(before, state_of(engine, told)) == [] and said(told) == turns


def test_words_find_turns_that_memory_has_in_its_window(told):
    told.add([("user", "The spare key hangs behind the marimba."), ("assistant", "Noted.")])
    found = told.recall("where is the MARIMBA", 3)
    assert [each.source for each in found] == sorted(each.source for each in found)
    (hit,) = [each for each in found if each.source == "text" and "marimba" in each.turn.text]
    assert "marimba" in hit.snippet and hit.score > 0
    assert hit.turn.index == told.n_turns - 2
    assert all(each.turn.index < hit.turn.index for each in found if each.source == "memory")
    assert {each.source for each in told.recall("where is the marimba", 3, text=False)} == {
        "memory"
    }


def test_the_snippet_of_a_long_turn_is_where_memory_looked(engine, store):
    filler = " ".join(f"Line {i} of the ledger is in good order." for i in range(30))
    text = f"{filler} The gate code is 4711. {filler}"
    with engine.session("long turn", store=store) as session:
        session.add([("user", text), ("assistant", "Noted."), *chatter(4)])
        (best, *_) = session.recall("What is the gate code?", 1, text=False)
        assert best.turn.index == 0 and len(best.snippet) <= 202
        assert best.snippet.strip("…") in text


def test_a_short_or_empty_session_has_nothing_in_memory(engine, store):
    with engine.session("b", store=store) as session:
        assert session.recall("What?") == []
        session.add([("user", "The gate code is 4711."), ("assistant", "Noted.")])
        found = session.recall("gate code")
        assert [(each.source, each.turn.index) for each in found] == [("text", 0)]


def test_a_session_without_a_store_is_searched_by_memory_alone(engine):
    with engine.session("a") as session:
        session.add([("user", "The gate code is 4711."), ("assistant", "Noted."), *chatter(10)])
        found = session.recall("What is the gate code?", 2)
        assert found[0].turn.index == 0 and {each.source for each in found} == {"memory"}


def test_a_question_may_follow_a_users_turn(told):
    told.add("user", "One moment.")
    assert told.recall("What is the gate code?", 1)[0].turn.text == "The gate code is 4711."


@pytest.mark.parametrize(
    ("query", "k", "message"),
    [
        ("", 3, "empty"),
        ("a\0", 3, "NUL"),
        ("Hm?", 0, "k is"),
        ("Hm?", True, "k is"),
        ("Hm?", "3", "k is"),
    ],
)
def test_a_query_that_is_none_is_refused(told, query, k, message):
    with pytest.raises(InputError, match=message):
        told.recall(query, k)


def test_nothing_is_recalled_while_a_reply_streams(told):
    stream = told.stream("Tell me of the lake.", max_new_tokens=8)
    pieces = iter(stream)
    next(pieces)
    with pytest.raises(SessionInUseError):
        told.recall("What is the gate code?")
    list(pieces)
    assert stream.reply.text


def test_a_store_without_full_text_search_still_recalls_by_memory(told, monkeypatch):
    def lacking(query, k):
        raise StoreError("this build of SQLite has no full-text search")

    monkeypatch.setattr(told._conversation.ledger.handle, "search", lacking)
    with pytest.raises(StoreError, match="full-text"):
        told.recall("What is the gate code?")
    assert told.recall("What is the gate code?", text=False)


def test_a_read_only_store_is_recalled_from(engine, tmp_path):
    with SQLiteStore(tmp_path / "s") as store, engine.session("a", store=store) as session:
        session.add([("user", "The gate code is 4711."), ("assistant", "Noted."), *chatter(10)])
    with (
        SQLiteStore(tmp_path / "s", read_only=True) as store,
        engine.session("a", store=store) as session,
    ):
        found = session.recall("What is the gate code?", 1)
        assert [(each.source, each.turn.index) for each in found] == [("memory", 0), ("text", 0)]


def test_long_questions_are_read_span_by_span(engine, store):
    config = SMALL.replace(lookup_span=8)
    narrow = Engine(engine.model, engine.tokenizer, config)
    with narrow.session("narrow", store=store) as session:
        session.add([("user", "The gate code is 4711."), ("assistant", "Noted."), *chatter(10)])
        long = "I have been standing here for an hour now, it rains. What is the gate code?"
        before = state_of(narrow, session)
        assert session.recall(long, 3, text=False)
        assert differing(before, state_of(narrow, session)) == []
