"""Tell tool calls from the text around them, in one piece or while a reply streams."""

from __future__ import annotations

from collections.abc import Collection

from longmem.errors import InputError
from longmem.lookahead import held_back
from longmem.tools.calls import ToolCall
from longmem.tools.formats import FORMATS, CallFormat, Read


def parse_tool_calls(
    text: str, format: str, *, names: Collection[str] | None = None
) -> tuple[str, tuple[ToolCall, ...]]:
    """Split a whole reply into its text and its tool calls.

    Args:
        text: the reply, without reasoning, with the format's markers (`Reply.text`).
        format: "hermes" (Qwen's too), "llama3" or "mistral"; see `ChatFormat.tool_format`.
        names: the tools there are. A call without any marker (Llama) has to be of one of them; a
            marked one is given whatever its name, so that callers can tell the model it is wrong.

    Returns:
        The text, and the calls in their order. What is malformed stays text, unchanged; next to
        calls, white space is dropped. Ids are new unless the model wrote them (Mistral).

    Raises:
        InputError: there is no such format.
    """
    known = _format(format)
    pieces: list[str] = []
    calls: list[ToolCall] = []
    at = scan = 0
    bare = _read_bare(known, text, names)
    if bare is not None:
        return "", bare[0]
    while (found := text.find(known.marker, scan)) >= 0:
        read = known.read(text, found)
        if read is None:
            scan = found + len(known.marker)
            continue
        pieces.append(text[at:found])
        calls += read[0]
        at = scan = read[1]
    if not calls:
        return text, ()
    return _joined([*pieces, text[at:]]), tuple(calls)


class ToolCallSplitter:
    """As `parse_tool_calls`, for a reply that comes in pieces, however it is cut.

    From the first marker on everything is held back until the end.

    Args:
        format, names: as for `parse_tool_calls`.
    """

    def __init__(self, format: str, *, names: Collection[str] | None = None) -> None:
        self._format, self._names = _format(format), names
        self._given: list[str] = []
        self._held = ""
        self._holds = False

    def push(self, piece: str) -> str:
        """Take the next characters; return those that surely belong to the text."""
        self._held += piece
        if self._holds:
            return ""
        marker, opening = self._format.marker, self._format.opening
        if opening and not self._given and self._held.lstrip().startswith(opening):
            self._holds = True
            return ""
        found = self._held.find(marker)
        self._holds = found >= 0
        end = found if self._holds else len(self._held) - held_back(self._held, (marker,))
        return self._give(len(self._held[:end].rstrip()))

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        """The reply is over: the rest of its text, and the calls."""
        given = "".join(self._given)
        text, calls = parse_tool_calls(given + self._held, self._format.name, names=self._names)
        self._held = ""
        return text[len(given) :], calls

    def _give(self, end: int) -> str:
        shown, self._held = self._held[:end], self._held[end:]
        if shown:
            self._given.append(shown)
        return shown


def _format(name: str) -> CallFormat:
    if name not in FORMATS:
        raise InputError(
            f"there is no tool call format {name!r}; there are {', '.join(sorted(FORMATS))}"
        )
    return FORMATS[name]


def _read_bare(known: CallFormat, text: str, names: Collection[str] | None) -> Read | None:
    start = len(text) - len(text.lstrip())
    if known.read_bare is None or not text.startswith(known.opening, start):
        return None
    read = known.read_bare(text, start)
    if read is None or names is None or all(call.name in names for call in read[0]):
        return read
    return None


def _joined(pieces: list[str]) -> str:
    """Texts around calls as one, without the white space that set the calls apart."""
    first, *rest = pieces
    later = [piece.strip() for piece in rest if piece.strip()]
    return "\n".join([first.rstrip(), *later] if first.strip() else later)
