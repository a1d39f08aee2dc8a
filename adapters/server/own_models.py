"""Bodies and objects of longmem's own routes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from longmem.adapters.server.chat_models import Metadata
from longmem.adapters.server.responses_body import Id
from longmem.dialogue import public_id, turn_message

if TYPE_CHECKING:
    from longmem.store import SessionInfo
    from longmem.types import Recollection, SessionStats, Turn

_STRICT = ConfigDict(strict=True)
_MOST = 2**53  # what JSON numbers hold exactly
LastTurn = Annotated[int, Field(ge=-1, le=_MOST)]
TurnIndex = Annotated[int, Field(ge=0, le=_MOST)]


class ForkBody(BaseModel):
    """How to fork."""

    model_config = _STRICT

    id: Annotated[Id | None, Field(description="of the new session; without it one is made up")] = (
        None
    )
    at: Annotated[
        LastTurn | None, Field(description="last turn it keeps; -1: none; default: all")
    ] = None
    metadata: Metadata | None = None


class RollbackBody(BaseModel):
    """How far to go back."""

    model_config = _STRICT

    to: LastTurn = Field(description="last turn that is kept; -1: none is")


class ForgetBody(BaseModel):
    """What to forget."""

    model_config = _STRICT

    turns: (
        TurnIndex
        | Annotated[list[TurnIndex], Field(min_length=1, max_length=10_000, fail_fast=True)]
    )


class RecallBody(BaseModel):
    """What to look for."""

    model_config = _STRICT

    query: Annotated[str, Field(min_length=1)]
    k: Annotated[int, Field(ge=1, le=100, description="most turns of each source")] = 8
    text: Annotated[bool, Field(description="whether to search the text as well")] = True


def session_object(owner: str | None, info: SessionInfo) -> dict[str, Any]:
    """A session; `info` with its public id."""
    return {
        "id": info.id,
        "object": "session",
        "created_at": info.created_at,
        "updated_at": info.updated_at,
        "expires_at": info.expires_at,
        "turns": info.n_turns,
        "tokens": info.n_tokens,
        "bytes": info.bytes,
        "metadata": dict(info.metadata),
        "forked_from": None if info.parent is None else public_id(owner, info.parent),
        "forked_at": info.parent_turn,
    }


def turn_object(turn: Turn) -> dict[str, Any]:
    """A turn."""
    message = turn_message(turn)
    calls = [asdict(call) for call in message.tool_calls]
    return {
        "object": "turn",
        "index": turn.index,
        "id": message.id,
        "role": message.role,
        "text": message.text,
        "reasoning": message.reasoning,
        "tool_calls": calls,
        "tool_call_id": message.tool_call_id,
        "name": message.name,
        "finish_reason": turn.extra.get("finish_reason"),
        "tokens": turn.tokens,
        "created_at": turn.created_at,
    }


def stats_object(stats: SessionStats) -> dict[str, Any]:
    """Figures of a session; a hit rate is null where nothing was asked for."""
    tiers = {
        name: {**asdict(tier), "hit_rate": tier.hit_rate} for name, tier in stats.tiers.items()
    }
    return {"object": "session.stats", **asdict(stats), "tiers": tiers}


def recollection_object(found: Recollection) -> dict[str, Any]:
    """A turn that came back, and why."""
    return {
        "object": "recollection",
        "source": found.source,
        "score": found.score,
        "snippet": found.snippet,
        "turn": turn_object(found.turn),
    }
