"""The text of a reply, told apart from its tool calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from longmem.tools import ToolCall, ToolCallSplitter, parse_tool_calls, tool_names

if TYPE_CHECKING:
    from longmem.chat import ChatFormat


class ReplyText:
    """One reply's text, while it comes and when it is whole.

    Args:
        chat: whose tool calls they are.
        tools: definitions of the session's tools; without any, nothing is a call.
        tool_choice: "none": nothing is a call, either.
    """

    def __init__(self, chat: ChatFormat, tools: Sequence[Any], tool_choice: str) -> None:
        calls = bool(tools) and tool_choice != "none"
        self._format = chat.tool_format if calls else None
        self._names = tool_names(tools)
        self._splitter = ToolCallSplitter(self._format, names=self._names) if self._format else None
        self._given = ""
        self._parsed: tuple[str, tuple[ToolCall, ...]] | None = None

    def push(self, piece: str) -> str:
        """Take the next characters; return those that surely belong to the text."""
        shown = piece if self._splitter is None else self._splitter.push(piece)
        self._given += shown
        return shown

    def parse(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """Text and calls of the whole reply; the same ones every time, as calls get random ids."""
        if self._parsed is None:
            self._parsed = (
                parse_tool_calls(text, self._format, names=self._names)
                if self._format
                else (text, ())
            )
        return self._parsed

    def rest(self) -> tuple[str, tuple[ToolCall, ...]]:
        """What of text and calls was not given before; nothing the second time."""
        text, calls = self._parsed or ("", ())
        rest = text[len(self._given) :]
        self._given += rest
        self._parsed = (text, ())
        return rest, calls
