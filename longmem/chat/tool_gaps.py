"""What a chat template writes around calls of tools and their results.

As `longmem.chat.gaps`, with turns that only tools have: an assistant's turn whose text the template
makes out of calls, and a tool's turn that names the call it answers. Name and id of the call may
stand anywhere around a result, so pieces hold `NAME_SLOT` and `ID_SLOT` in their places.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from longmem.chat.gaps import (
    REPLY,
    TEMPLATE_ERRORS,
    Gaps,
    Pair,
    RefusedError,
    Render,
    gaps_of,
    sentinels,
)
from longmem.chat.pieces import (
    Opening,
    Pieces,
    Stable,
    any_of,
    closing_of,
    edges_of,
    lengthen_header,
    rewrites_of,
    split_gaps,
)
from longmem.tools.calls import short_id
from longmem.tools.grammar import ID_SLOT, NAME_SLOT

NEEDED_CODES = ("UCR", "UCRAU")
OPTIONAL_CODES = ("UCRRAU", "UCRU", "UCRR")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")
CALL_ARGUMENT = sentinels("UC")[1]


@dataclass(frozen=True)
class ToolPieces:
    """Pieces of a template that writes tool calls and their results.

    Args:
        pieces: those of the whole format, with the tool's turns as they follow calls.
        call: what the template writes for a call, with slots in place of name, id and arguments.
        bare: calls stand right behind the request for a reply, without what precedes other replies.
    """

    pieces: Pieces
    call: str
    bare: bool


def derive_tool_pieces(
    render: Render, pieces: Pieces, controls: Sequence[str], stable: Stable
) -> ToolPieces:
    """Work out the pieces around calls and results.

    Args:
        render, controls, stable: as for `derive_pieces`.
        pieces: those of the turns without tools.

    Raises:
        RefusedError: the template writes no calls, or not turn by turn.
    """
    gaps = _collect(render, pieces)
    refused = {role: why for role, why in pieces.refused.items() if role != "tool"}
    rewrites = rewrites_of(render, gaps, refused)
    if "tool" in refused:
        raise RefusedError(refused["tool"])
    known = {pair: opening.rewrite for pair, opening in pieces.openings.items()} | rewrites
    edges = {role: edges_of(role, known) for role in ("user", "assistant", "tool")}
    pattern = any_of(controls)
    closing = closing_of("tool", gaps, pattern, None, stable, edges)
    whole = _with_tool(pieces, closing, gaps, rewrites, refused)
    if not whole.headers["tool"]:
        lengthen_header(whole, "tool", pattern, stable, edges["tool"][1])
    (_, before), (_, behind) = gaps_of(render, "UCRAU", reply=True)[1:3]
    slots = {"tool_call_id": ID_SLOT, "name": NAME_SLOT}
    call, bare = call_between(before + CALL_ARGUMENT + behind, whole, slots)
    return ToolPieces(whole, call, bare)


def fill(piece: str, extra: Mapping[str, Any]) -> str:
    """A piece around a tool's turn with its own ``tool_call_id`` and ``name`` in the slots.

    They come from callers and stand beside trusted text: nothing but letters, digits, "_", "." and
    "-" is let through.
    """
    id, name = (str(extra.get(key) or "") for key in ("tool_call_id", "name"))
    return piece.replace(ID_SLOT, short_id(id)).replace(NAME_SLOT, _UNSAFE.sub("_", name) or "tool")


def call_between(gap: str, pieces: Pieces, extra: Mapping[str, Any]) -> tuple[str, bool]:
    """The text of calls, and whether it is `ToolPieces.bare`.

    Args:
        gap: what the template writes between a user's text and the text of the first call's result.
        pieces: with the tool's turns.
        extra: the first result's ``tool_call_id`` and ``name``.

    Raises:
        RefusedError: the template sets calls otherwise than replies.
    """
    behind = pieces.closings["assistant"] + pieces.openings["assistant", "tool"].prefix
    behind = fill(behind, extra)
    end = len(gap) - len(behind)
    opening = pieces.closings["user"] + pieces.openings["user", "assistant"].prefix
    header = pieces.closings["user"] + pieces.headers["user"]
    for start, bare in ((opening, False), (header, True)):
        if gap.startswith(start) and gap.endswith(behind) and end >= len(start):
            return gap[len(start) : end], bare
    raise RefusedError("it sets calls of tools otherwise than replies")


def _with_tool(
    pieces: Pieces,
    closing: str,
    gaps: Gaps,
    rewrites: dict[Pair, str],
    refused: dict[str, str],
) -> Pieces:
    closings = {**pieces.closings, "tool": closing}
    openings, headers = split_gaps(gaps, closings, rewrites)
    if "tool" not in headers or ("assistant", "tool") not in openings:
        raise RefusedError("it asks for no reply to a tool's result")
    openings.setdefault(("tool", "user"), pieces.openings["assistant", "user"])
    kept = {pair: opening for pair, opening in pieces.openings.items() if "tool" not in pair}
    return replace(
        pieces,
        openings=kept | openings,
        closings=closings,
        headers=pieces.headers | headers,
        refused=refused,
    )


def _collect(render: Render, pieces: Pieces) -> Gaps:
    """The gaps beside tools' turns."""
    gaps = Gaps()
    for code in (*NEEDED_CODES, *OPTIONAL_CODES):
        try:
            found = list(enumerate(gaps_of(render, code, reply=True)))
            for index, (pair, gap) in found:
                if "tool" in pair:
                    _add(gaps, pair, _cut_call(pair, gap, pieces), code, index)
        except (RefusedError, *TEMPLATE_ERRORS) as error:
            if code in NEEDED_CODES:
                raise RefusedError(str(error) or type(error).__name__) from error
    gaps.ends["tool"] = {gaps_of(render, "UCR", reply=False)[-1][1]}
    return gaps


def _add(gaps: Gaps, pair: Pair, gap: str, code: str, index: int) -> None:
    known = gaps.between.setdefault(pair, gap)
    if known != gap:
        raise RefusedError(
            f"it writes {gap!r} between {pair[0]} and {pair[1]} in the conversation {code}, but "
            f"{known!r} elsewhere"
        )
    if pair[1] != REPLY:
        gaps.source.setdefault(pair, (code, index))


def _cut_call(pair: Pair, gap: str, pieces: Pieces) -> str:
    """A gap behind a call without the call's own end."""
    if pair[0] != "assistant":
        return gap
    closing = pieces.closings["assistant"]
    at = gap.find(closing) if closing else -1
    if at < 0:
        raise RefusedError("it ends calls of tools otherwise than replies")
    return gap[at:]


def without_tool_role(pieces: Pieces, tags: tuple[str, str]) -> Pieces:
    """For templates without a tool's role: results are user turns, inside `tags`."""
    prefix, suffix = tags
    openings = dict(pieces.openings)
    for (previous, role), opening in pieces.openings.items():
        if role == "user" and previous is not None:
            openings[previous, "tool"] = Opening(opening.prefix + prefix, opening.rewrite)
        if previous == "user":
            openings["tool", role] = opening
    openings["tool", "tool"] = openings["user", "tool"]
    refused = {role: why for role, why in pieces.refused.items() if role != "tool"}
    return replace(
        pieces,
        openings=openings,
        closings={**pieces.closings, "tool": suffix + pieces.closings["user"]},
        headers={**pieces.headers, "tool": pieces.headers["user"]},
        refused=refused,
    )
