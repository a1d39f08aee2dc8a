"""Values that cross the public surface: turns in, replies and figures out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = ("system", "user", "assistant", "tool")

FinishReason = Literal["eos", "length", "stop", "stopped"]
"""Why a reply ended: the model's end token, ``max_new_tokens``, a stop string, `ReplyStream.stop`."""


@dataclass(frozen=True)
class Turn:
    """One message of one role, as it stands in a session.

    Args:
        role: "system", "user", "assistant" or "tool".
        text: the message; for a reply without its reasoning and its stop string.
        index: position in the session, from 0; -1 before it is committed.
        tokens: number of token ids it was read as, template pieces included.
        created_at: Unix seconds.
        extra: details kept with the turn (``reasoning``, ``finish_reason`` ...).
    """

    role: str
    text: str
    index: int = -1
    tokens: int = 0
    created_at: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recalled:
    """A turn whose blocks were looked up for a reply.

    Args:
        turn: the turn.
        score: share, 0 to 1, of the look-ups' votes that its blocks received.
        lookups: how many of the reply's look-ups (layers x refreshes) chose one of its blocks.
    """

    turn: Turn
    score: float
    lookups: int


@dataclass(frozen=True)
class Recollection:
    """A turn that `Session.recall` found.

    Args:
        turn: the turn.
        score: for "memory" the share, 0 to 1, of the look-ups' votes that its blocks received; for
            "text" the BM25 score of the full-text search. The two cannot be compared.
        source: "memory": its blocks were looked up for the query; "text": words of it match.
        snippet: the part of it that was found.
    """

    turn: Turn
    score: float
    source: Literal["memory", "text"]
    snippet: str


@dataclass(frozen=True)
class Usage:
    """Token and look-up counts of one reply.

    Args:
        read: tokens fed to the model before the first sampled one (this turn's, never the history's).
        generated: tokens sampled.
        from_memory: tokens of history that stood in memory and were not read again.
        refreshes: decode steps at which at least one layer looked blocks up again.
        recycled: decode steps at which none did: all reused their last working set.
        lookups: look-ups of layers at those steps.
        lookups_saved: further ones that looking up in all layers at every step would have taken.
    """

    read: int
    generated: int
    from_memory: int
    refreshes: int = 0
    recycled: int = 0
    lookups: int = 0
    lookups_saved: int = 0


@dataclass(frozen=True)
class Timings:
    """Seconds of wall clock: to the first token, from there to the last, and to commit."""

    first_token: float = 0.0
    decode: float = 0.0
    commit: float = 0.0


@dataclass(frozen=True)
class Reply:
    """What `Session.ask` returns.

    Args:
        text: the reply without reasoning, cut before the stop string.
        reasoning: text inside ``<think>`` tags, if the model wrote any.
        finish_reason: "eos", "length", "stop" or "stopped".
        usage: token and look-up counts.
        recalled: turns whose blocks were looked up, the best first.
        timings: seconds.
        turn: index of the reply's turn; None when nothing was committed.
    """

    text: str
    reasoning: str
    finish_reason: FinishReason
    usage: Usage
    recalled: tuple[Recalled, ...]
    timings: Timings
    turn: int | None = None


@dataclass(frozen=True)
class TierStats:
    """How often the blocks of look-ups were found in one place, since the session was opened. Blocks
    that stood in the working set already were not asked for.

    Args:
        hits: blocks that were asked for there and found.
        misses: blocks that were asked for there and not found.
        bytes: bytes it holds of blocks; on disk, of all the session's files.
        bytes_read: bytes that look-ups read from it; of the disk alone.
        ahead: hits that were being read when they were asked for; of the disk alone.
    """

    hits: int = 0
    misses: int = 0
    bytes: int = 0
    bytes_read: int = 0
    ahead: int = 0

    @property
    def hit_rate(self) -> float | None:
        """hits / (hits + misses); None while nothing was asked for."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else None


@dataclass(frozen=True)
class SessionStats:
    """Figures of one session.

    Args:
        tokens, turns, blocks: how much was read; blocks are closed semantic blocks per layer.
        window: tokens in the local window and pending, exact and always attended.
        bytes_device: K/V of initial, window, pending and looked-up tokens, the block slots and the
            block index.
        bytes_host: K/V of closed blocks held in host memory.
        bytes_disk: bytes of the session's files; 0 without a store on disk.
        last_turn_at: Unix seconds of the last turn, None for an empty session.
        bytes_index: of bytes_device, what the block index takes; it counts inside
            MemoryConfig.host_bytes on a CPU, inside device_bytes elsewhere.
        tiers: where the blocks of look-ups were found: "device", "host", "disk".
    """

    tokens: int
    turns: int
    blocks: int
    window: int
    bytes_device: int
    bytes_host: int
    bytes_disk: int
    last_turn_at: float | None
    bytes_index: int = 0
    tiers: Mapping[str, TierStats] = field(default_factory=dict)
