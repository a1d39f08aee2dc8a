"""The system prompt and the tools of a session, which stay pinned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longmem.dialogue.message import Message
from longmem.errors import SystemChangedError
from longmem.tools import tool_definitions

if TYPE_CHECKING:
    from longmem.dialogue.request import Request
    from longmem.types import Turn


@dataclass(frozen=True)
class Prompt:
    """What stands before a conversation.

    Args:
        system: the system prompt; None: none.
        tools: definitions of tools.
    """

    system: str | None = None
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """For `Engine.session`, which pins it in a new session."""
        tools = {"tools": self.tools} if self.tools else {}
        return {"system": self.system, **tools}


def split(request: Request) -> tuple[Prompt, Sequence[Message]]:
    """The prompt of a request, and its messages behind it. Several system messages are one prompt."""
    messages = request.messages
    n = next((i for i, each in enumerate(messages) if each.role != "system"), len(messages))
    system = "\n\n".join(each.text for each in messages[:n]) if n else None
    return Prompt(system or None, tuple(tool_definitions(request.tools))), messages[n:]


def pinned(turn: Turn | None) -> Prompt:
    """The prompt of a session whose system turn this is."""
    if turn is None:
        return Prompt()
    return Prompt(turn.text or None, tuple(turn.extra.get("tools", ())))


def check(prompt: Prompt, held: Prompt, session: str) -> None:
    """Whether a request goes with what is pinned in its session; what it leaves out does.

    Args:
        prompt: the request's.
        held: the session's.
        session: its public id.

    Raises:
        SystemChangedError: says what differs.
    """
    changed = [
        name
        for name, new, old in (
            ("system prompt", prompt.system, held.system),
            ("tools", _plain(prompt.tools), _plain(held.tools)),
        )
        if new and new != old
    ]
    if changed:
        raise SystemChangedError(
            f"session {session!r} was begun with another {' and other '.join(changed)}, pinned for as "
            "long as it lasts; leave them out or keep the session's, or begin a new session"
        )


def _plain(tools: Sequence[Any]) -> list[str]:
    return [json.dumps(tool, sort_keys=True) for tool in tools]
