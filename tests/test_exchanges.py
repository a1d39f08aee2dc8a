"""Exchanges of several turns, what is kept with them, and tools in the system turn."""

from __future__ import annotations

import asyncio
import threading

import pytest
from conftest import SMALL, chatter
from timelines import differing, said, state_of

from longmem import Engine, InputError, SessionError, SystemChangedError, Turn
from longmem.store import Record
from longmem.stores import InMemoryStore, SQLiteStore

TOOL = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "What time it is.",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}},
    },
}


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    made = InMemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "store")
    with made:
        yield made


def test_several_turns_and_a_reply_are_one_commit(engine, store):
    turns = [("user", "My name is Ann."), ("assistant", "Noted."), ("user", "Who am I?")]
    with engine.session("a", store=store) as session, engine.session("b") as other:
        reply = session.ask(turns, max_new_tokens=6)
        assert said(session) == [*turns, ("assistant", reply.text)]
        assert reply.turn == 3 and store.info("a").head == 1
        sizes = [turn.tokens for turn in session.turns()[:3]]
        header = engine.chat.reply_header_ids("user")
        assert reply.usage.read == sum(sizes) + len(header) and reply.usage.from_memory == 0
        other.add(turns[:2])
        assert other.ask(turns[2][1], max_new_tokens=6).text == reply.text
        assert [record.ids for record in session._conversation.ledger.history.turns()] == [
            record.ids for record in other._conversation.ledger.history.turns()
        ]


def test_the_first_of_several_turns_may_be_the_system_prompt(engine, store):
    with engine.session("a", store=store) as session:
        session.ask(
            [("system", "You are a clerk of a small town."), ("user", "Hi.")], max_new_tokens=2
        )
        assert session.system == "You are a clerk of a small town."
        assert session._conversation.memory.table.n_init == session.turns()[0].tokens > SMALL.n_init


def test_a_dropped_exchange_of_several_turns_leaves_no_trace(engine, store):
    turns = [*chatter(6), ("user", "And?")]
    with engine.session("a", store=store) as session:
        session.add(chatter(3))
        before, told = state_of(engine, session), said(session)
        with session.stream(turns, max_new_tokens=20) as stream:
            next(iter(stream))
        session.ask(turns, commit=False, max_new_tokens=4)
        assert differing(before, state_of(engine, session)) == [] and said(session) == told


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "none was given"),
        ([("user", "Hi."), ("assistant", "Hello.")], "use add for it"),
        ([("system", "Be kind.")], "use add for it"),
        ([("user", "Hi."), ("user", "")], "empty"),
        ([("user", "Hi."), "there"], "a role and a text"),
        (("user", "Hi."), "a role and a text"),
        ({"role": "user", "content": "Hi."}, "in a list"),
        (Turn("user", "Hi."), "in a list"),
        (7, "in a list"),
        ([{"role": "user", "content": "Hi.", "extra": {"x": object()}}], "JSON-able"),
        ([{"role": "user", "content": "Hi.", "extra": [1]}], "mapping"),
    ],
)
def test_turns_that_cannot_be_asked_are_refused(engine, turns, message):
    with engine.session("a") as session:
        with pytest.raises(InputError, match=message):
            session.ask(turns)
        assert session.n_turns == 0


def test_details_are_kept_with_their_turns(engine, store):
    given = [
        Turn("user", "One.", extra={"id": "m0"}),
        {"role": "assistant", "content": "Two.", "extra": {"id": "m1", "finish_reason": "eos"}},
        {"role": "user", "text": "Three."},
    ]
    with engine.session("a", store=store) as session:
        session.ask(
            given,
            max_new_tokens=2,
            extra={"id": "m3", "both": 1},
            finish=lambda reply: {"both": 2, "length": len(reply.text)},
        )
    with engine.session("a", store=store) as session:
        turns = session.turns()
        assert [turn.extra.get("id") for turn in turns] == ["m0", "m1", None, "m3"]
        assert turns[1].extra["finish_reason"] == "eos"
        assert turns[3].extra["finish_reason"] in ("length", "eos")
        assert turns[3].extra["both"] == 2 and turns[3].extra["length"] == len(turns[3].text)


def test_finish_and_records_see_the_whole_reply_on_the_thread_that_commits(engine, store):
    seen = []

    def finish(reply):
        seen.append(("finish", threading.get_ident(), reply))
        return {}

    def records(reply):
        seen.append(("records", threading.get_ident(), reply))
        assert store.records.get("replies", "r1") is None
        return [Record("replies", "r1", {"text": reply.text, "turn": reply.turn})]

    with engine.session("a", store=store) as session:
        reply = session.ask("Hello?", max_new_tokens=3, finish=finish, records=records)
        assert [(what, thread) for what, thread, _ in seen] == [
            ("finish", threading.get_ident()),
            ("records", threading.get_ident()),
        ]
        for _, _, early in seen:
            assert (early.text, early.turn, early.usage) == (reply.text, 1, reply.usage)
        assert store.records.get("replies", "r1") == {"text": reply.text, "turn": 1}


def test_they_work_from_asyncio_too(engine, store):
    async def talk(session):
        reply = await session.aask(
            [("user", "One."), ("assistant", "Two."), ("user", "Three?")],
            max_new_tokens=3,
            extra={"id": "x"},
            records=lambda reply: [Record("replies", "r1", reply.text)],
        )
        stream = session.astream("Four?", max_new_tokens=3, finish=lambda reply: {"id": "y"})
        assert "".join([piece async for piece in stream]) == stream.reply.text
        return reply

    with engine.session("a", store=store) as session:
        reply = asyncio.run(talk(session))
        assert [turn.extra.get("id") for turn in session.turns()][3::2] == ["x", "y"]
        assert store.records.get("replies", "r1") == reply.text


class Refused(Exception):
    """What the tests' functions raise."""


@pytest.mark.parametrize("where", ["finish", "records"])
@pytest.mark.parametrize("what", ["raises", "gives nonsense"])
def test_what_they_raise_drops_the_exchange(engine, store, where, what):
    def broken(reply):
        if what == "raises":
            raise Refused
        return {"x": object()} if where == "finish" else [Record("r", "k", object())]

    error = Refused if what == "raises" else InputError
    with engine.session("a", store=store) as session:
        session.add(chatter(6))
        before, told = state_of(engine, session), said(session)
        with pytest.raises(error):
            session.ask("Hello?", max_new_tokens=3, **{where: broken})
        assert differing(before, state_of(engine, session)) == [] and said(session) == told
        assert store.records.list("r") == []
        session.ask("Hello?", max_new_tokens=3)
        assert session.n_turns == 14
    assert store.verify() == []


def test_what_is_kept_needs_a_commit_and_records_need_a_store(engine, store):
    with engine.session("a", store=store) as session, engine.session("b") as loose:
        for options in ({"extra": {"x": 1}}, {"finish": dict}, {"records": list}):
            with pytest.raises(InputError, match="commit=False"):
                session.ask("Hello?", commit=False, **options)
        with pytest.raises(InputError, match="JSON-able"):
            session.ask("Hello?", extra={"x": object()})
        with pytest.raises(SessionError, match=r"session 'b' has no store.*InMemoryStore"):
            loose.ask("Hello?", records=lambda reply: [])
        loose.ask("Hello?", max_new_tokens=2, extra={"x": 1}, finish=lambda reply: {"y": 2})
        assert {"x": 1, "y": 2}.items() <= loose.turns()[1].extra.items()
        assert session.n_turns == 0


def test_tools_stand_in_the_system_turn(engine, store):
    with engine.session("a", store=store, system="Be brief.", tools=[TOOL]) as session:
        assert session.system == "Be brief." and session.tools == (TOOL,)
        (turn,) = session.turns()
        record = session._conversation.ledger.history.turns()[0]
        assert '"clock"' in engine.tokenizer.decode(record.ids)
        assert session._conversation.memory.table.n_init == turn.tokens
    with engine.session("a", store=store, system="Be brief.", tools=[TOOL]) as session:
        assert session.tools == (TOOL,)
        session.begin(None)
    with engine.session("a", store=store) as session:
        assert session.system == "Be brief."
    with engine.session("a", store=store, rebuild=True) as session:
        assert session.tools == (TOOL,)


@pytest.mark.parametrize(
    ("system", "tools", "message"),
    [
        ("Be long.", None, "another system prompt"),
        (None, [], "other tools"),
        (None, [{"type": "function", "function": {"name": "calendar"}}], "other tools"),
        ("Be brief.", [TOOL, {"name": "calendar"}], "other tools"),
    ],
)
def test_another_system_prompt_or_other_tools_are_told_apart(engine, store, system, tools, message):
    with engine.session("a", store=store, system="Be brief.", tools=[TOOL]):
        pass
    with pytest.raises(SystemChangedError, match=rf"session 'a' was begun with {message}"):
        engine.session("a", store=store, system=system, tools=tools)
    with pytest.raises(SystemChangedError):
        session = engine.session("b", store=store)
        session.add(chatter(1))
        session.begin("Be brief.")


def test_tools_alone_make_a_system_turn_and_no_tools_make_none(engine, store):
    with engine.session("a", store=store, tools=[TOOL]) as session:
        assert session.system is None and session.tools == (TOOL,) and session.n_turns == 1
    with engine.session("b", store=store, tools=[]) as session:
        assert session.tools == () and session.n_turns == 0
        session.add(chatter(1))
    with engine.session("b", store=store, tools=[]) as session:
        assert session.tools == ()
    with pytest.raises(InputError, match="tool"):
        engine.session("c", store=store, tools=[{"name": "no good name!"}])
    assert sorted(info.id for info in store.sessions()) == ["a", "b"]


def test_a_session_that_is_not_there_is_not_made_when_that_is_not_wanted(engine, store):
    from longmem import SessionNotFoundError

    with pytest.raises(SessionNotFoundError):
        engine.session("a", store=store, create=False)
    assert store.sessions() == []
    engine.session("a", store=store).close()
    engine.session("a", store=store, create=False).close()


def test_reasoning_that_comes_with_a_turn_is_read_with_it(engine):
    from longmem.chat import ChatFormat

    thinking = Engine(engine.model, engine.tokenizer, SMALL.replace(keep_reasoning=True))
    assert isinstance(thinking.chat, ChatFormat)
    with thinking.session("a") as session:
        turn = Turn("assistant", "Four.", extra={"reasoning": "Two and two."})
        session.add([("user", "2 + 2?"), turn])
        (_, record) = session._conversation.ledger.history.turns()
        assert "Two and two." in engine.tokenizer.decode(record.ids)
        assert session.turns()[1].extra == {"reasoning": "Two and two."}
