"""Owners: nobody can read, change or even notice what belongs to another."""

from __future__ import annotations

from collections.abc import Callable

import dialogues
import pytest
from dialogues import ask, held, user
from hypothesis import given
from hypothesis import strategies as st

from longmem import InputError, LongMemError, SessionNotFoundError
from longmem.dialogue import Dialogue, Request, fork_name, public_id, session_id

Verb = Callable[[Dialogue, str | None, str], object]

VERBS: dict[str, Verb] = {
    "info": lambda d, owner, id: d.info(owner, id),
    "turns": lambda d, owner, id: d.turns(owner, id),
    "stats": lambda d, owner, id: d.stats(owner, id),
    "recall": lambda d, owner, id: d.recall(owner, id, "a"),
    "fork": lambda d, owner, id: d.fork(owner, id),
    "fork to a name": lambda d, owner, id: d.fork(owner, id, "new"),
    "rollback": lambda d, owner, id: d.rollback(owner, id, 1),
    "forget": lambda d, owner, id: d.forget(owner, id, 0),
    "delete": lambda d, owner, id: d.delete(owner, id),
    "erase": lambda d, owner, id: d.erase(owner, id),
    "go on from a turn": lambda d, owner, id: ask(d, "b", session=id, owner=owner, at=1),
}
STRANGERS = ("eve", "alicee", "a", None)


engine, empty = dialogues.engine, dialogues.dialogue


@pytest.fixture
def dialogue(empty: Dialogue) -> Dialogue:
    """One that holds alice's session "s"."""
    ask(empty, "secret", session="s", owner="alice")
    return empty


def refusal(dialogue: Dialogue, verb: Verb, owner: str | None, id: str) -> tuple[type, str]:
    with pytest.raises(LongMemError) as caught:
        verb(dialogue, owner, id)
    return type(caught.value), str(caught.value).replace(repr(id), "ID")


@pytest.mark.parametrize("name", VERBS)
def test_the_id_of_anothers_session_is_as_unknown_as_one_that_never_was(
    dialogue: Dialogue, name: str
) -> None:
    verb = VERBS[name]
    for owner in STRANGERS:
        for id in ("s", "alice:s", ":alice:s"):
            assert refusal(dialogue, verb, owner, id) == refusal(dialogue, verb, owner, "never-was")
        assert dialogue.sessions(owner) == []
    assert held(dialogue, "s", "alice") == ["secret", "re secret"]
    assert [info.id for info in dialogue.sessions("alice")] == ["s"]


@pytest.mark.parametrize("owner", STRANGERS)
def test_a_session_of_the_same_id_begins_anew_for_another_owner(
    dialogue: Dialogue, owner: str | None
) -> None:
    for id in ("s", "alice:s"):
        first = ask(dialogue, "mine", session=id, owner=owner)
        assert (first.session, first.from_memory, first.turn) == (id, 0, 1)
        assert held(dialogue, id, owner) == ["mine", "re mine"]
        fork = dialogue.fork(owner, id, at=-1)
        assert fork.startswith(f"{id}~")
    assert sorted(dialogue.info(owner, id).id for id in ("s", "alice:s")) == ["alice:s", "s"]
    dialogue.create(owner, "t")
    dialogue.erase(owner, "s")
    dialogue.delete(owner, "alice:s")
    assert held(dialogue, "s", "alice") == ["secret", "re secret"]
    assert len(dialogue.sessions("alice")) == 1


def test_anothers_exchange_under_way_is_in_nobodys_way(dialogue: Dialogue) -> None:
    with dialogue.stream(Request([user("b")], session="s", owner="alice")) as exchange:
        next(iter(exchange))
        assert ask(dialogue, "mine", session="s", owner="eve").turn == 1
        with pytest.raises(SessionNotFoundError):
            dialogue.delete("bob", "s")


def test_keys_and_retries_are_each_owners_own(dialogue: Dialogue) -> None:
    ask(dialogue, "b", session="s", owner="alice", idempotency_key="k")
    ask(dialogue, "secret", "re secret", "B", session="s", owner="alice", fork_id="f")
    for owner in ("eve", None):
        assert not ask(dialogue, "x", session="s", owner=owner, idempotency_key="k").repeated
        assert not ask(dialogue, "x", session="f", owner=owner, retry=True).repeated
        sent = ("secret", "re secret", "B", "re B", "c")
        followed = ask(dialogue, *sent, session="s", owner=owner)
        assert followed.from_memory == 0
        assert followed.session != "f"


@pytest.mark.parametrize("owner", ["", "a:b", "ä", "x" * 65, "a b"])
def test_a_name_that_could_be_taken_for_another_is_no_owner(dialogue: Dialogue, owner: str) -> None:
    with pytest.raises(InputError, match="is not made of"):
        ask(dialogue, "a", owner=owner)
    with pytest.raises(InputError, match="is not made of"):
        dialogue.info(owner, "s")


def test_a_session_made_without_a_dialogue_is_found_by_its_name(dialogue: Dialogue) -> None:
    with dialogue.engine.session("user:42", store=dialogue.pool.store) as session:
        session.ask("a")
    assert ask(dialogue, "b", session="user:42").turn == 3
    assert held(dialogue, "user:42") == ["a", "re a", "b", "re b"]
    assert [info.id for info in dialogue.sessions(None)] == ["user:42"]
    with pytest.raises(SessionNotFoundError):
        dialogue.turns("user", "42")


OWNERS = st.none() | st.from_regex(r"\A[A-Za-z0-9_-]{1,8}\Z")
IDS = st.text("ab:~-_", min_size=1, max_size=6)


@given(OWNERS, IDS, OWNERS, IDS)
def test_no_two_sessions_share_a_stored_id(
    owner: str | None, id: str, other: str | None, other_id: str
) -> None:
    same = session_id(owner, id) == session_id(other, other_id)
    assert same == ((owner, id) == (other, other_id))
    assert public_id(owner, session_id(owner, id)) == id


def test_a_fork_of_a_fork_has_one_random_end() -> None:
    name = fork_name(fork_name("chat"))
    assert name.count("~") == 1
    assert len(session_id("o" * 64, fork_name("x" * 256))) <= 256
