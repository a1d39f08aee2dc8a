"""Whatever view of a conversation a client sends, turn after turn, the session is what it believes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from conftest import chatter
from dialogues import STORES, ask, echo_engine, new_store, said, user
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import Scripted

from longmem import Engine, Sampling
from longmem.dialogue import Dialogue, Message, Outcome, Request, turn_message
from longmem.store import Snapshot
from longmem.stores import InMemoryStore

VIEWS = ("whole", "new", "trimmed", "edited", "again", "retried", "left", "unstored")


@dataclass
class Client:
    """A client with a belief, which sends some view of it."""

    dialogue: Dialogue
    engine: Scripted
    ids: bool
    diverge: str
    session: str | None = "s"
    belief: list[Message] = field(default_factory=list)
    said: int = 0
    last: Request | None = None

    def message(self) -> Message:
        """Something never said before."""
        self.said += 1
        return user(f"message {self.said}", f"id-{self.said}" if self.ids else None)

    def send(self, messages: list[Message], scope: str, **options: object) -> Outcome:
        """One request; the belief is what was believed, and the answer."""
        options = {"session": self.session, "scope": scope, "diverge": self.diverge, **options}
        self.last = Request(messages, **options)  # type: ignore[arg-type]
        outcome = self.dialogue.reply(self.last)
        if outcome.session is not None:
            back = outcome.message
            self.belief.append(back if self.ids else Message("assistant", back.text))
            self.session = outcome.session
        return outcome

    def step(self, view: str, at: int) -> None:
        """Do what a client may do; then look at what the session holds."""
        before = self.engine.tokens_read
        at = 2 * (at % (len(self.belief) // 2)) if self.belief else 0
        if view == "left" or not self.belief:
            with self.dialogue.stream(Request([self.message()], session=self.session)) as exchange:
                next(iter(exchange))
        if not self.belief:
            view = "whole"
        if view in ("whole", "new", "trimmed"):
            held = len(self.belief)
            start = {"whole": 0, "new": held, "trimmed": at}[view]
            self.belief.append(self.message())
            before = self.engine.tokens_read
            outcome = self.send(self.belief[start:], "new" if view == "new" else "whole")
            assert outcome.forked_from is None
            assert self.engine.tokens_read - before == self.tokens(held), "only what is new is read"
        elif view == "edited":
            self.belief = [*self.belief[:at], self.message()]
            self.send(self.belief, "whole")
        elif view == "again":
            self.belief = self.belief[: at + 1]
            self.send(self.belief, "whole")
        elif view == "retried" and self.last is not None:
            options = {name: getattr(self.last, name) for name in ("messages", "scope", "diverge")}
            again = Request(session=self.session, retry=True, **options)
            assert [self.dialogue.reply(again).repeated for _ in "ab"] == [True, True]
            assert self.engine.tokens_read == before
        elif view == "unstored":
            self.send([*self.belief, self.message()], "whole", store=False)
            self.last = None
        assert said(self.held()) == said(self.belief)

    def held(self) -> list[Message]:
        """The messages of the session."""
        turns = self.dialogue.turns(None, self.session or "")
        return [turn_message(turn) for turn in turns if turn.role != "system"]

    def tokens(self, start: int) -> int:
        """Tokens of the session's turns from `start` on, and of a system prompt read with them."""
        turns = self.dialogue.turns(None, self.session or "")
        return sum(turn.tokens for turn in turns[start:])


ENGINE = echo_engine()


@settings(max_examples=15, deadline=None)
@given(
    st.booleans(),
    st.sampled_from(["fork", "rollback"]),
    st.lists(st.tuples(st.sampled_from(VIEWS), st.integers(0, 20)), min_size=2, max_size=8),
)
def test_the_session_is_what_the_client_believes(
    ids: bool, diverge: str, steps: list[tuple[str, int]]
) -> None:
    with InMemoryStore() as store, Dialogue(ENGINE, store) as dialogue:
        client = Client(dialogue, ENGINE, ids, diverge)
        for view, at in steps:
            client.step(view, at)
        if diverge == "rollback":
            assert [info.id for info in dialogue.sessions(None)] == ["s"]


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(("whole", "edited")), st.integers(0, 20)), max_size=6))
def test_a_client_that_always_names_the_first_session_is_understood(
    steps: list[tuple[str, int]],
) -> None:
    with InMemoryStore() as store, Dialogue(ENGINE, store) as dialogue:
        client = Client(dialogue, ENGINE, False, "fork")
        for view, at in [("whole", 0), *steps]:
            client.session = "s"
            if view == "whole":
                client.belief.append(client.message())
            else:
                at = 2 * (at % (len(client.belief) // 2))
                client.belief = [*client.belief[:at], client.message()]
            outcome = client.send(client.belief, "whole")
            assert said(client.held()) == said(client.belief)
            if view == "whole":
                assert outcome.from_memory == client.tokens(0) - client.tokens(
                    len(client.belief) - 2
                )


def snapshot(dialogue: Dialogue, session: str) -> Snapshot:
    """What the session stands on, from its store."""
    dialogue.pool.evict(session)
    handle = dialogue.pool.store.open(session)
    try:
        found = handle.snapshot()
    finally:
        handle.close()
    assert found is not None
    return found


@pytest.mark.parametrize("store", STORES)
def test_time_travel_leaves_the_state_of_a_session_that_never_went_elsewhere(
    engine: Engine, store: str, tmp_path: Path
) -> None:
    sampling = Sampling(max_new_tokens=6, eos_token_id=())
    a, b, c, fork = (" ".join(text for _, text in chatter(4, seed)) for seed in range(4))
    with new_store(store, tmp_path) as made, Dialogue(engine, made) as dialogue:
        ok, *_ = [ask(dialogue, text, sampling=sampling).message.text for text in (a, b, c)]
        straight = [
            ask(dialogue, text, session="t", sampling=sampling).message.text for text in (a, fork)
        ]
        travel = [a, ok, fork]
        forked = ask(dialogue, *travel, sampling=sampling, fork_id="f")
        rolled = ask(dialogue, *travel, sampling=sampling, diverge="rollback")
        assert forked.message.text == rolled.message.text == straight[1]
        expected = snapshot(dialogue, "t")
        assert dialogue.stats(None, "t").blocks > 0
        for session in ("f", "s"):
            found = snapshot(dialogue, session)
            assert found.n_tokens == expected.n_tokens
            for kind in ("blocks", "state"):
                mine, other = getattr(found, kind), getattr(expected, kind)
                assert mine.keys() == other.keys()
                for name in mine.keys() - {"rng"}:
                    assert torch.equal(mine[name], other[name]), (session, name)
