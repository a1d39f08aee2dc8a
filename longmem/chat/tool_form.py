"""How a chat format tells of tools: as its template does, or in a system turn where that does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from longmem.chat.encode import TurnEncoder
from longmem.chat.gaps import TEMPLATE_ERRORS, RefusedError
from longmem.chat.native_tools import NativeTools, native_tools
from longmem.chat.pieces import Opening, Pieces
from longmem.chat.template import ChatTemplate
from longmem.chat.tool_check import Turns, tools_disagree
from longmem.chat.tool_gaps import without_tool_role
from longmem.errors import InputError
from longmem.tools.calls import ToolCall
from longmem.tools.grammar import ARGUMENT_SLOT, ID_SLOT, NAME_SLOT
from longmem.tools.prompt import RESPONSE_TAGS, hermes_text


class ToolForm(Protocol):
    """What a chat format does with tools.

    Attributes:
        native: the template itself tells of tools.
        pieces: of the format, with turns of tools.
        format: the name of the format of calls.
        call: the text of one call, with slots (`longmem.tools.grammar`).
    """

    native: bool
    pieces: Pieces
    format: str
    call: str

    def opening(self, text: str, previous: str | None, plain: Opening) -> Opening:
        """What stands before an assistant's turn, given what stands before others."""

    def call_text(self, content: str, calls: Sequence[ToolCall]) -> str:
        """The text of an assistant's turn with calls."""


class PromptedTools:
    """Tools told of in the system prompt, called in the Hermes format.

    Args:
        pieces: of the format; results of tools are user turns if it has no others for them.
    """

    native = False
    format = "hermes"

    def __init__(self, pieces: Pieces) -> None:
        lacks = "tool" in pieces.refused
        self.pieces = without_tool_role(pieces, RESPONSE_TAGS) if lacks else pieces
        self.call = hermes_text("", [ToolCall(ID_SLOT, NAME_SLOT, f'{{"{ARGUMENT_SLOT}": "x"}}')])

    def opening(self, text: str, previous: str | None, plain: Opening) -> Opening:
        """As `ToolForm.opening`."""
        return plain

    def call_text(self, content: str, calls: Sequence[ToolCall]) -> str:
        """As `ToolForm.call_text`."""
        return hermes_text(content, calls)


def find_tools(
    template: ChatTemplate,
    encoder: TurnEncoder,
    pieces: Pieces,
    make: Callable[..., Turns],
) -> ToolForm | None:
    """The tools of a format, proven against its template; None if it has no place to tell of them.

    Args:
        make: makes the format, given ``tools=``.
    """
    try:
        native: NativeTools = native_tools(template, encoder, pieces)
        if tools_disagree(make(tools=native), template, encoder, native) is None:
            return native
    except (RefusedError, InputError, *TEMPLATE_ERRORS):
        pass  # whatever it is that the template does not take: it is not needed to talk
    return None if "system" in pieces.refused else PromptedTools(pieces)
