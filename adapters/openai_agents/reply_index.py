"""Where a reply is: by the id of its message, a response can be gone on from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from longmem.dialogue import Dialogue, Outcome, session_id

if TYPE_CHECKING:
    from longmem.store import Record

_NAMESPACE = "openai_agents.replies"


@dataclass(frozen=True)
class Place:
    """Where a reply stands: public id of its session, index of its turn."""

    session: str
    turn: int


def noted(owner: str | None, message_id: str) -> Callable[[Outcome], Sequence[Record]]:
    """What to give as `Request.records`, so that `place_of` finds the reply; it goes when the reply
    goes."""

    def records(outcome: Outcome) -> Sequence[Record]:
        from longmem.store import Record

        place = {"session": outcome.session, "turn": outcome.turn}
        return (Record(_NAMESPACE, session_id(owner, message_id), place),)

    return records


def place_of(dialogue: Dialogue, owner: str | None, message_id: str) -> Place | None:
    """Where the reply of this id is; None if no session of the owner holds it."""
    if dialogue.store is None:
        return None
    found = dialogue.store.records.get(_NAMESPACE, session_id(owner, message_id))
    return None if found is None else Place(found["session"], found["turn"])
