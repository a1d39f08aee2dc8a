"""Requests that come again: answered once; lists sent to the first session again and again."""

from __future__ import annotations

from pathlib import Path

import dialogues
import pytest
from dialogues import ask, held, names
from scripted import Scripted

from longmem import InputError
from longmem.dialogue import Dialogue
from longmem.stores import SQLiteStore

engine, dialogue = dialogues.engine, dialogues.dialogue


def test_a_key_gets_the_stored_reply(dialogue: Dialogue, engine: Scripted) -> None:
    first = ask(dialogue, "a", idempotency_key="k", message_id="r1")
    ask(dialogue, "b")
    before = engine.tokens_read
    again = ask(dialogue, "a", idempotency_key="k", message_id="r2")
    assert engine.tokens_read == before
    assert again.repeated
    assert again.message == first.message
    assert (again.session, again.turn, again.finish_reason) == ("s", 1, "stop")
    assert again.reply.usage == first.reply.usage
    assert (again.read, again.from_memory) == (0, first.read + first.from_memory)
    assert held(dialogue) == ["a", "re a", "b", "re b"]
    with pytest.raises(InputError, match="other messages"):
        ask(dialogue, "c", idempotency_key="k")


def test_a_key_finds_the_reply_in_the_fork_that_was_made_for_it(dialogue: Dialogue) -> None:
    ask(dialogue, "a")
    ask(dialogue, "b")
    first = ask(dialogue, "a", "re a", "FORK", idempotency_key="k")
    again = ask(dialogue, "a", "re a", "FORK", idempotency_key="k")
    assert (again.repeated, again.session, again.forked_from) == (True, first.session, "s")
    assert len(names(dialogue)) == 2


def test_a_key_whose_reply_was_rolled_back_is_new_again(dialogue: Dialogue) -> None:
    ask(dialogue, "a")
    ask(dialogue, "b", idempotency_key="k")
    dialogue.rollback(None, "s", 1)
    assert not ask(dialogue, "b", idempotency_key="k").repeated
    assert held(dialogue) == ["a", "re a", "b", "re b"]


def test_a_key_finds_its_reply_after_earlier_turns_were_forgotten(dialogue: Dialogue) -> None:
    ask(dialogue, "a")
    first = ask(dialogue, "b", idempotency_key="k")
    dialogue.forget(None, "s", [0, 1])
    again = ask(dialogue, "b", idempotency_key="k")
    assert (again.repeated, again.turn, again.message) == (True, 1, first.message)
    assert ask(dialogue, "b", "re b", "c").forked_from is None
    assert held(dialogue) == ["b", "re b", "c", "re c"]


def test_a_key_finds_its_reply_where_other_turns_moved_up_to_its_place(dialogue: Dialogue) -> None:
    ask(dialogue, "a")
    first = ask(dialogue, "b", idempotency_key="k")
    for i in range(3):
        ask(dialogue, f"c{i}")
    dialogue.forget(None, "s", [0, 1])
    again = ask(dialogue, "b", idempotency_key="k")
    assert (again.repeated, again.turn, again.message) == (True, 1, first.message)
    assert held(dialogue) == ["b", "re b", *(f"{re}c{i}" for i in range(3) for re in ("", "re "))]


def test_a_retry_gets_the_reply_of_the_last_exchange(dialogue: Dialogue) -> None:
    ask(dialogue, "a")
    first = ask(dialogue, "b")
    for again in (
        ask(dialogue, "b", retry=True),
        ask(dialogue, "b", retry=True, at=1),
        ask(dialogue, "a", "re a", "b", retry=True),
    ):
        assert again.repeated
        assert again.message == first.message
    assert held(dialogue) == ["a", "re a", "b", "re b"]


def test_a_retry_whose_first_try_never_came_is_answered(dialogue: Dialogue) -> None:
    ask(dialogue, "a")
    assert not ask(dialogue, "b", retry=True).repeated
    assert not ask(dialogue, "b", retry=True, at=3).repeated
    assert held(dialogue) == ["a", "re a", "b", "re b", "b", "re b"]


def test_a_retry_of_what_was_answered_in_a_fork_gets_that_fork(dialogue: Dialogue) -> None:
    ask(dialogue, "a")
    ask(dialogue, "b")
    first = ask(dialogue, "B", at=1)
    again = ask(dialogue, "B", at=1, retry=True)
    assert (again.repeated, again.session, again.forked_from) == (True, first.session, "s")
    assert ask(dialogue, "B", at=1).session != first.session
    assert not ask(dialogue, "other", at=1, retry=True).repeated


def test_who_names_the_first_session_again_and_again_goes_on_in_its_fork(
    dialogue: Dialogue, engine: Scripted
) -> None:
    for text in ("a", "b"):
        ask(dialogue, text)
    sent = ["a", "re a", "FORK"]
    fork = ask(dialogue, *sent).session
    new = ask(dialogue, "c", session="other").read
    for text in ("c", "d"):
        sent += [f"re {sent[-1]}", text]
        outcome = ask(dialogue, *sent)
        assert (outcome.session, outcome.forked_from, outcome.read) == (fork, "s", new)
    assert held(dialogue, fork or "") == [*sent, "re d"]
    again = ask(dialogue, *sent, retry=True)
    assert (again.repeated, again.session, again.forked_from) == (True, fork, "s")
    other = ask(dialogue, *sent[:3], "re FORK", "C")
    assert other.forked_from == fork
    assert other.session not in (fork, "s")
    third = ask(dialogue, *sent[:3], "re FORK", "C", "re C", "D")
    assert (third.session, third.read) == (other.session, new)
    assert held(dialogue) == ["a", "re a", "b", "re b"]
    dialogue.rollback(None, fork or "", 1)
    assert ask(dialogue, *sent).forked_from == "s"
    assert ask(dialogue, *sent, diverge="rollback").session == "s"
    assert held(dialogue) == [*sent, "re d"]


def test_after_a_restart_lists_go_on_and_repeats_are_known(
    engine: Scripted, tmp_path: Path
) -> None:
    with SQLiteStore(tmp_path / "s") as store, Dialogue(engine, store) as dialogue:
        ask(dialogue, "a")
        ask(dialogue, "b", idempotency_key="k")
        fork = ask(dialogue, "a", "re a", "B").session
    before = engine.tokens_read
    with SQLiteStore(tmp_path / "s") as store, Dialogue(engine, store) as dialogue:
        assert ask(dialogue, "b", idempotency_key="k").repeated
        assert ask(dialogue, "b", retry=True).repeated
        assert ask(dialogue, "a", "re a", "B", retry=True).session == fork
        assert engine.tokens_read == before
        assert ask(dialogue, "a", "re a", "b", "re b", "c").forked_from is None
        assert ask(dialogue, "a", "re a", "B", "re B", "C").session == fork
        new = [dialogue.turns(None, id)[4:] for id in ("s", fork or "")]
        assert engine.tokens_read - before == sum(turn.tokens for turns in new for turn in turns)
