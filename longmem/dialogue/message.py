"""One message as an API or a framework sends it, and the turn it is in a session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longmem.errors import InputError
from longmem.tools import ToolCall
from longmem.types import ROLES, Turn

if TYPE_CHECKING:
    from longmem.chat import ChatFormat


@dataclass(frozen=True)
class Message:
    """One message of one role.

    Args:
        role: "system", "user", "assistant" or "tool".
        text: what is said; of an assistant without reasoning and tool calls.
        id: the caller's name for it. Messages that come back are recognised by it when the head of
            their list was trimmed.
        tool_calls: of an assistant.
        tool_call_id: which call a "tool" message answers.
        name: of the tool a "tool" message comes from.
        reasoning: of an assistant.

    Raises:
        InputError: there is no such role.
    """

    role: str
    text: str
    id: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str = ""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InputError(f"a message has no role {self.role!r}; there are {', '.join(ROLES)}")


def turn_message(turn: Turn) -> Message:
    """The message that a committed turn is, as the caller gave or got it."""
    extra = turn.extra
    calls = tuple(ToolCall(**call) for call in extra.get("tool_calls", ()))
    return Message(
        turn.role,
        extra.get("content", turn.text) if calls else turn.text,
        id=extra.get("id"),
        tool_calls=calls,
        tool_call_id=extra.get("tool_call_id"),
        name=extra.get("name"),
        reasoning=str(extra.get("reasoning") or ""),
    )


def message_turn(message: Message, chat: ChatFormat) -> Turn:
    """A message as a turn to read; `turn_message` gives it back.

    Args:
        message: the message.
        chat: writes tool calls into the text of an assistant's turn, as the template does.

    Raises:
        InputError: the chat format knows no tool calls.
    """
    extra: dict[str, Any] = {
        name: value
        for name in ("id", "tool_call_id", "name", "reasoning")
        if (value := getattr(message, name))
    }
    text = message.text
    if message.tool_calls:
        extra |= call_details(message.text, message.tool_calls)
        text = chat.assistant_text(message.text, message.tool_calls)
    return Turn(message.role, text, extra=extra)


def call_details(content: str, calls: Sequence[ToolCall]) -> Mapping[str, Any]:
    """What is kept with an assistant's turn whose text holds tool calls."""
    kept = [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in calls]
    return {"content": content, "tool_calls": kept}
