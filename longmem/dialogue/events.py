"""What an exchange gives while it runs, and when it is through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from longmem.dialogue.message import Message
from longmem.tools import ToolCall
from longmem.types import Reply


@dataclass(frozen=True)
class TextDelta:
    """The next characters of the answer; reasoning and tool calls are left out."""

    text: str


@dataclass(frozen=True)
class ToolCallsReady:
    """The reply calls tools; given once, after the last text."""

    calls: tuple[ToolCall, ...]


Event = TextDelta | ToolCallsReady


@dataclass(frozen=True)
class Outcome:
    """What an exchange came to.

    Args:
        session: public id of the session that holds it; None if nothing was stored.
        turn: index of the reply's turn in it; None if nothing was stored.
        message: the reply, role "assistant", tool calls parsed.
        reply: what the session said of it. Of a repeat, as far as it was kept: `recalled` and
            `timings` are empty.
        finish_reason: "stop", "length" or "tool_calls".
        repeated: the reply of an earlier, equal request; nothing was read.
        forked_from: public id of the session the messages diverged from; None if they did not.
        read: tokens read for this exchange before the reply's first: those of the new messages.
        from_memory: tokens of history that were not read again.
    """

    session: str | None
    turn: int | None
    message: Message
    reply: Reply
    finish_reason: Literal["stop", "length", "tool_calls"]
    repeated: bool
    forked_from: str | None
    read: int
    from_memory: int
