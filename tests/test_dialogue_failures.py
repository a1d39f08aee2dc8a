"""Exchanges that are left, refused or fail leave nothing; what is known of them when."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import dialogues
import pytest
from dialogues import STORES, ask, held, names, talk, user
from scripted import Scripted

from longmem import (
    InputError,
    Sampling,
    SessionError,
    SessionInUseError,
    SessionNotFoundError,
    StoreFullError,
    TurnTooLargeError,
)
from longmem.dialogue import Dialogue, Message, Request, TextDelta, unfinished
from longmem.store import Record
from longmem.stores import InMemoryStore, SQLiteStore

engine, dialogue = dialogues.engine, dialogues.dialogue


@pytest.mark.parametrize("options", [{}, {"at": 1}, {"at": 1, "diverge": "rollback"}])
def test_an_exchange_that_is_left_early_leaves_nothing(
    dialogue: Dialogue, options: dict[str, object]
) -> None:
    ask(dialogue, "a")
    ask(dialogue, "b")
    request = Request([user("c")], session="s", **options)  # type: ignore[arg-type]
    with dialogue.stream(request) as exchange:
        assert next(iter(exchange)) == TextDelta("re")
    with pytest.raises(SessionError, match="no outcome"):
        _ = exchange.outcome
    assert names(dialogue) == ["s"]
    assert held(dialogue) == ["a", "re a", "b", "re b"]
    assert ask(dialogue, "d").turn == 5


def test_a_new_session_whose_exchange_fails_is_not_there(dialogue: Dialogue) -> None:
    def fails(outcome: object) -> list[Record]:
        raise RuntimeError("no records today")

    request = Request([Message("system", "Hm."), user("a")], session="s", records=fails)
    with pytest.raises(RuntimeError, match="no records"):
        dialogue.reply(request)
    with dialogue.stream(Request([user("a")], session="s")) as exchange:
        next(iter(exchange))
    with pytest.raises(TurnTooLargeError):
        ask(dialogue, "a" * 5_000_000)
    assert names(dialogue) == []
    with pytest.raises(SessionNotFoundError):
        dialogue.info(None, "s")


def test_stop_commits_what_was_said(dialogue: Dialogue) -> None:
    with dialogue.stream(Request([user("one two three")], session="s")) as exchange:
        first = next(iter(exchange))
        outcome = exchange.stop()
    assert isinstance(first, TextDelta)
    assert outcome.message.text == first.text == "re"
    assert held(dialogue) == ["one two three", "re"]
    assert exchange.outcome is outcome


def test_records_are_kept_with_the_exchange_and_know_its_outcome(dialogue: Dialogue) -> None:
    seen = []

    def records(outcome: object) -> list[Record]:
        seen.append(outcome)
        return [Record("mine", "k", {"turn": outcome.turn})]  # type: ignore[attr-defined]

    request = Request([user("a")], session="s", records=records)
    outcome = dialogue.reply(request)
    assert dialogue.pool.store.records.get("mine", "k") == {"turn": 1}
    assert (seen[0].message, seen[0].session) == (outcome.message, "s")  # type: ignore[attr-defined]
    dialogue.delete(None, "s")
    assert dialogue.pool.store.records.get("mine", "k") is None


def test_what_is_known_of_an_exchange_is_known_before_its_first_event(dialogue: Dialogue) -> None:
    ask(dialogue, "a")
    ask(dialogue, "b")
    with dialogue.stream(Request([user("c")], session="s", at=1, message_id="r")) as exchange:
        assert exchange.session not in (None, "s")
        assert (exchange.forked_from, exchange.message_id, exchange.repeated) == ("s", "r", False)
        texts = [event.text for event in exchange if isinstance(event, TextDelta)]
    assert "".join(texts) == exchange.outcome.message.text == "re c"
    again = Request([user("c")], session="s", at=1, retry=True, message_id="other")
    with dialogue.stream(again) as exchange:
        assert (exchange.repeated, exchange.message_id, exchange.forked_from) == (True, "r", "s")
        assert list(exchange) == [TextDelta("re c")]
        assert list(exchange.stop().message.text) == list("re c")


def test_a_session_that_is_written_is_not_written_by_another_request(dialogue: Dialogue) -> None:
    ask(dialogue, "a")
    with dialogue.stream(Request([user("b")], session="s")) as exchange:
        next(iter(exchange))
        with pytest.raises(SessionInUseError, match="'s' is in the middle of an exchange"):
            ask(dialogue, "c")
        for change in (
            lambda: dialogue.rollback(None, "s", -1),
            lambda: dialogue.forget(None, "s", 0),
            lambda: dialogue.delete(None, "s"),
            lambda: dialogue.erase(None, "s"),
        ):
            with pytest.raises(SessionInUseError):
                change()
        assert ask(dialogue, "c", session="t").turn == 1
        assert held(dialogue) == ["a", "re a"]
        exchange.stop()
    assert ask(dialogue, "c").turn == 5


def test_a_session_that_is_written_can_be_forked_from_a_named_turn(dialogue: Dialogue) -> None:
    ask(dialogue, "a")
    with dialogue.stream(Request([user("b")], session="s")) as exchange:
        next(iter(exchange))
        outcome = ask(dialogue, "c", at=1, fork_id="f")
        assert (outcome.session, outcome.forked_from) == ("f", "s")
        with pytest.raises(SessionInUseError):
            ask(dialogue, "c", at=1, fork_id="g", retry=True)
        exchange.finish()
    assert held(dialogue, "f") == ["a", "re a", "c", "re c"]
    assert held(dialogue) == ["a", "re a", "b", "re b"]


@pytest.mark.parametrize(
    ("messages", "options", "match"),
    [
        ([], {}, "there is none"),
        (talk("a", "b"), {}, "the last is 'assistant'"),
        ([Message("system", "a")], {}, "the last is 'system'"),
        (talk("a"), {"scope": "some"}, "scope is 'some'"),
        (talk("a"), {"scope": "whole", "at": 1}, "give one of them"),
        (talk("a"), {"always_fork": True, "diverge": "rollback"}, "goes with diverge"),
        (talk("a"), {"diverge": "merge"}, "diverge is 'merge'"),
    ],
)
def test_requests_that_cannot_be_served_say_why(
    messages: list[Message], options: dict[str, object], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        Request(messages, session="s", **options)  # type: ignore[arg-type]


def test_a_rollback_whose_exchange_fails_changes_nothing(dialogue: Dialogue) -> None:
    def fails(outcome: object) -> list[Record]:
        raise RuntimeError("no records today")

    first = ask(dialogue, "a", idempotency_key="a")
    last = ask(dialogue, "b", idempotency_key="b")
    with pytest.raises(RuntimeError, match="no records"):
        ask(dialogue, "x", "y", "z", diverge="rollback", records=fails)
    assert held(dialogue) == ["a", "re a", "b", "re b"]
    assert ask(dialogue, "b", idempotency_key="b").message == last.message
    records = [Record("mine", "k", 1)]
    ask(
        dialogue,
        "a",
        "re a",
        "B",
        diverge="rollback",
        idempotency_key="B",
        records=lambda _: records,
    )
    assert ask(dialogue, "a", idempotency_key="a").message == first.message
    assert not ask(dialogue, "b", idempotency_key="b", at=3).repeated
    assert ask(dialogue, "a", "re a", "B", diverge="rollback", idempotency_key="B").repeated
    assert dialogue.pool.store.records.get("mine", "k") == 1
    dialogue.rollback(None, "s", 1)
    assert dialogue.pool.store.records.get("mine", "k") is None
    assert dialogue.pool.store.verify() == []


@pytest.mark.parametrize("kind", STORES)
def test_a_store_that_is_full_leaves_all_as_it_was(
    engine: Scripted, kind: str, tmp_path: Path
) -> None:
    limits = {"max_bytes": 300_000}
    long = "word " * 1500
    full = InMemoryStore(**limits) if kind == "memory" else SQLiteStore(tmp_path / "full", **limits)
    with full, Dialogue(engine, full) as dialogue:
        for text in ("a", "b"):
            ask(dialogue, text)
        for options in (
            {},
            {"session": "new"},
            {"at": 1},
            {"at": 1, "diverge": "rollback"},
            {"at": -1, "diverge": "rollback", "idempotency_key": "k"},
        ):
            with pytest.raises(StoreFullError):
                ask(dialogue, long, sampling=Sampling(max_new_tokens=2), **options)
            assert names(dialogue) == ["s"]
            assert held(dialogue) == ["a", "re a", "b", "re b"]
        assert not ask(dialogue, "c", at=-1, diverge="rollback", idempotency_key="k").repeated
        assert held(dialogue) == ["c", "re c"]
        assert full.verify() == []


@pytest.mark.parametrize(
    "options", [{"session": "new"}, {"at": 1}, {"at": 1, "diverge": "rollback"}, {}]
)
def test_a_crash_in_the_middle_of_an_exchange_leaves_nothing_of_it(
    engine: Scripted, tmp_path: Path, options: dict[str, Any]
) -> None:
    with SQLiteStore(tmp_path / "s") as store, Dialogue(engine, store) as dialogue:
        for text in ("a", "b"):
            ask(dialogue, text)
        done = ask(dialogue, "B", at=1, fork_id="f").session
        with dialogue.stream(Request([user("c")], **{"session": "s", **options})) as exchange:
            next(iter(exchange))
            Dialogue(engine, store, pool=dialogue.pool)  # leaves what is under way alone
            shutil.copytree(tmp_path / "s", tmp_path / "crashed")
            exchange.finish()
        assert held(dialogue, exchange.session or "")[-1] == "re c"
        assert store.records.list("longmem.unfinished") == []
    with SQLiteStore(tmp_path / "crashed") as store, Dialogue(engine, store) as dialogue:
        assert names(dialogue) == [done, "s"]
        assert held(dialogue) == ["a", "re a", "b", "re b"]
        assert held(dialogue, "f") == ["a", "re a", "B", "re B"]
        assert store.records.list("longmem.unfinished") == []
        assert store.verify() == []


def test_a_crash_right_behind_a_fork_leaves_no_fork(
    engine: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = unfinished.note

    def crash(*arguments: Any) -> None:
        shutil.copytree(tmp_path / "s", tmp_path / "crashed")
        note(*arguments)

    with SQLiteStore(tmp_path / "s") as store, Dialogue(engine, store) as dialogue:
        for text in ("a", "b"):
            ask(dialogue, text)
        monkeypatch.setattr(unfinished, "note", crash)
        ask(dialogue, "B", at=1, fork_id="f")
        assert names(dialogue) == ["f", "s"]
    with SQLiteStore(tmp_path / "crashed") as store:
        assert len(store.sessions()) == 2
        with Dialogue(engine, store) as dialogue:
            assert names(dialogue) == ["s"]
            assert store.records.list("longmem.unfinished") == []


def test_a_fork_that_cannot_be_made_is_not_waited_for(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("a", "b"):
        ask(dialogue, text)

    def fails(*arguments: Any, **options: Any) -> None:
        raise StoreFullError("no room")

    monkeypatch.setattr(dialogue.pool, "fork", fails)
    with pytest.raises(StoreFullError):
        ask(dialogue, "B", at=1, fork_id="f")
    assert dialogue.pool.store.records.list("longmem.unfinished") == []


def test_what_somebody_else_commits_meanwhile_is_not_rolled_back(dialogue: Dialogue) -> None:
    for text in ("a", "b"):
        ask(dialogue, text)
    request = Request([user("B")], session="s", at=1, diverge="rollback")
    with dialogue.stream(request) as exchange:
        next(iter(exchange))
        with dialogue.pool.session("s") as session:
            session.ask("direct")
        with pytest.raises(SessionInUseError, match="'s' went on otherwise while"):
            exchange.finish()
    assert held(dialogue) == ["a", "re a", "b", "re b", "direct", "re direct"]
    assert dialogue.reply(request).session == "s"
    assert held(dialogue) == ["a", "re a", "B", "re B"]
