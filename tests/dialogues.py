"""What the tests of dialogues share: an engine that answers what it is asked, messages, stores.

A test file takes the fixtures by assignment: ``engine, dialogue = dialogues.engine, dialogues.dialogue``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from scripted import Scripted, scripted_engine

from longmem.dialogue import Dialogue, Message, Outcome, Request
from longmem.store import Store
from longmem.stores import InMemoryStore, SQLiteStore

STORES = ("memory", "sqlite")


def echo(text: str) -> str:
    """The reply to all that a session has read: names the message it answers."""
    last = text.rsplit("<|im_start|>", 2)[-2]
    return f"re {last.partition(chr(10))[2].partition('<|im_end|>')[0]}"


def echo_engine() -> Scripted:
    """An engine that answers every message with its own words."""
    return scripted_engine(echo)


@contextmanager
def new_store(kind: str, path: Path) -> Iterator[Store]:
    """An empty store."""
    with InMemoryStore() if kind == "memory" else SQLiteStore(path / "store") as store:
        yield store


@pytest.fixture(scope="module")
def engine() -> Scripted:
    """The echo, one for all tests of a file."""
    return echo_engine()


@pytest.fixture(params=STORES)
def dialogue(
    engine: Scripted, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Dialogue]:
    """A dialogue of the file's engine, over an empty store of either kind."""
    with new_store(request.param, tmp_path) as store, Dialogue(engine, store) as dialogue:
        yield dialogue


@pytest.fixture
def in_memory(engine: Scripted) -> Iterator[Dialogue]:
    """A dialogue of the file's engine, over an empty store in memory."""
    with InMemoryStore() as store, Dialogue(engine, store) as dialogue:
        yield dialogue


def user(text: str, id: str | None = None) -> Message:
    return Message("user", text, id)


def answer(text: str, id: str | None = None) -> Message:
    return Message("assistant", text, id)


def talk(*texts: str) -> list[Message]:
    """User and assistant in turns."""
    return [user(text) if i % 2 == 0 else answer(text) for i, text in enumerate(texts)]


def ask(dialogue: Dialogue, *texts: str, session: str | None = "s", **options: object) -> Outcome:
    """The outcome for user and assistant messages in turns."""
    return dialogue.reply(Request(talk(*texts), session=session, **options))  # type: ignore[arg-type]


def held(dialogue: Dialogue, session: str = "s", owner: str | None = None) -> list[str]:
    """The texts of a session's turns."""
    return [turn.text for turn in dialogue.turns(owner, session)]


def names(dialogue: Dialogue, owner: str | None = None) -> list[str]:
    """The ids of the owner's sessions."""
    return sorted(info.id for info in dialogue.sessions(owner))


def said(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in messages]
