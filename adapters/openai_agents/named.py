"""The sessions a `LongMemModel` may be run with, by what the SDK tells a model of them.

A model is not given the run's session. What it can get is a prompt cache key, made of the session's
id: the SDK puts it into the settings of a model that says it has a use for one.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from weakref import WeakValueDictionary

from longmem.adapters.openai_agents.kept_items import KeptItems
from longmem.dialogue import Dialogue

_PREFIX = "agents-sdk:session:"


@dataclass(frozen=True, eq=False)
class Named:
    """What all `LongMemSession` objects of one conversation share; it lives while one of them does."""

    dialogue: Dialogue
    session: str
    kept: KeptItems


_Key = tuple[str, int, str | None]
_alive: WeakValueDictionary[_Key, Named] = WeakValueDictionary()
_guard = threading.Lock()


def named(dialogue: Dialogue, owner: str | None, session: str, kept: KeptItems) -> Named:
    """Make a session known; the caller keeps what this returns."""
    digest = hashlib.sha256(session.strip().encode()).hexdigest()[:32]
    with _guard:
        return _alive.setdefault(
            (_PREFIX + digest, id(dialogue), owner), Named(dialogue, session, kept)
        )


def find(dialogue: Dialogue, owner: str | None, cache_key: str) -> Named | None:
    """The session that the SDK made this key for, if it is a `LongMemSession` of the dialogue."""
    return _alive.get((cache_key, id(dialogue), owner))


def other_session(cache_key: str) -> str | None:
    """A name for a session of another class that the SDK made this key for; None if the key is not
    made for a session."""
    if not cache_key.startswith(_PREFIX):
        return None
    return f"agents-{cache_key.removeprefix(_PREFIX)}"
