"""What the tools answer: clients see these as structured content, with a schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

if TYPE_CHECKING:
    from longmem.store import SessionInfo, TurnRecord
    from longmem.types import Recollection

LONGEST = 4000
"""Most characters of one turn in an answer; show_session with `whole` gives all of them."""


class SessionSummary(BaseModel):
    """A session in a list. Times are Unix seconds."""

    id: str
    turns: int
    tokens: int
    bytes_disk: int
    created_at: float
    updated_at: float
    model: str | None = None
    parent: str | None = None


class ShownTurn(BaseModel):
    """One turn; `cut` tells that its text is longer."""

    turn: int
    role: str
    text: str
    cut: bool = False
    created_at: float


class ShownSession(BaseModel):
    """A page of a session's turns, oldest first; `next` is the start of the page behind it."""

    session: SessionSummary
    turns: list[ShownTurn]
    next: int | None = None


class Found(BaseModel):
    """A turn that `recall` found, the best first within each source."""

    turn: int
    role: str
    text: str
    score: float
    source: Literal["memory", "text"]
    snippet: str


class Totals(BaseModel):
    """What a session holds, or all of them together."""

    sessions: int
    turns: int
    tokens: int
    bytes_disk: int


def summary_of(info: SessionInfo, id: str, parent: str | None) -> SessionSummary:
    """A session under the ids that the client knows."""
    model = info.metadata.get("model")
    return SessionSummary(
        id=id,
        turns=info.n_turns,
        tokens=info.n_tokens,
        bytes_disk=info.bytes,
        created_at=info.created_at,
        updated_at=info.updated_at,
        model=model if isinstance(model, str) else None,
        parent=parent,
    )


def turn_of(turn: TurnRecord, longest: int | None) -> ShownTurn:
    """A turn, cut to so many characters; None: whole."""
    cut = longest is not None and len(turn.text) > longest
    return ShownTurn(
        turn=turn.index,
        role=turn.role,
        text=turn.text[:longest] if cut else turn.text,
        cut=cut,
        created_at=turn.created_at,
    )


def found_of(each: Recollection) -> Found:
    """A turn that was recalled."""
    return Found(
        turn=each.turn.index,
        role=each.turn.role,
        text=each.turn.text[:LONGEST],
        score=each.score,
        source=each.source,
        snippet=each.snippet,
    )
