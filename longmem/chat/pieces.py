"""The constant text around each turn, derived from a tokenizer's own chat template.

Each gap between two roles (`longmem.chat.gaps`) is cut into the closing of the first turn and the
opening of the second. Rendering a turn is then opening + text + closing, whatever came before.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from longmem.chat.gaps import (
    LETTERS,
    NEEDED,
    REPLY,
    Gaps,
    Pair,
    Render,
    collect_gaps,
    pairs_of,
    rewrite_of,
)
from longmem.errors import ChatFormatError

Stable = Callable[[str, str, Sequence[str], Sequence[str]], bool]
"""(closing, rest, texts before, texts behind) -> whether no token ever straddles the cut between
closing and rest."""
Edges = tuple[Sequence[str], Sequence[str]]
"""Short texts that (begin, end) like those of a role."""
ALONE: Edges = (("",), ("",))


@dataclass(frozen=True)
class Opening:
    """What stands before a turn's text, and what the template does to the text (`REWRITES`)."""

    prefix: str
    rewrite: str = "as is"


@dataclass(frozen=True)
class Pieces:
    """The constant text of a chat template.

    Args:
        openings: by (previous role or None, role).
        closings: by role; what follows the text whoever speaks next.
        headers: by previous role; what asks the model for a reply, never empty.
        refused: role -> why the template cannot render it turn by turn.
        rendered: codes of the probe conversations the template takes.
    """

    openings: dict[Pair, Opening]
    closings: dict[str, str]
    headers: dict[str, str]
    refused: dict[str, str]
    rendered: tuple[str, ...]

    def texts(self) -> list[str]:
        """Every constant text."""
        prefixes = [opening.prefix for opening in self.openings.values()]
        return [*prefixes, *self.closings.values(), *self.headers.values()]

    def without(self, failures: dict[str, str]) -> Pieces:
        """The same without the roles and orders of roles whose conversations do not add up.

        Args:
            failures: conversation code -> what is wrong with it.

        Raises:
            ChatFormatError: without them, user and assistant turns cannot be rendered.
        """
        refused = self.refused | refused_roles(failures)
        kept = [code for code in self.rendered if code not in failures]
        gone = {pair for code in failures for pair in pairs_of(code)}
        gone -= {pair for code in kept for pair in pairs_of(code)}
        return replace(
            self,
            openings={pair: self.openings[pair] for pair in self.openings if pair not in gone},
            refused=refused,
            rendered=tuple(kept),
        )


def derive_pieces(
    render: Render, controls: Sequence[str], eos_token: str | None, stable: Stable
) -> Pieces:
    """Work out the pieces of a chat template.

    Args:
        render: the template.
        controls: strings that are one token whatever surrounds them; no piece is cut inside one.
        eos_token: the tokenizer's end token; a reply's closing reaches at least up to it.
        stable: tells whether the tokenizer never joins characters across a cut.

    Raises:
        ChatFormatError: user and assistant turns cannot be rendered one by one.
    """
    gaps = collect_gaps(render)
    refused = refused_roles(gaps.failures)
    for role in refused:
        gaps.refuse(role)
    rewrites = rewrites_of(render, gaps, refused)
    pattern = any_of(controls)
    roles = [role for role in NEEDED if role not in refused]
    edges = {role: edges_of(role, rewrites) for role in roles}
    closings = {role: closing_of(role, gaps, pattern, eos_token, stable, edges) for role in roles}
    openings, headers = split_gaps(gaps, closings, rewrites)
    _let_speakers_repeat(openings, closings)
    taken = [
        code for code in gaps.rendered if not any(LETTERS[letter] in refused for letter in code)
    ]
    pieces = Pieces(openings, closings, headers, refused, tuple(taken))
    for role in [role for role, header in headers.items() if not header]:
        lengthen_header(pieces, role, pattern, stable, edges[role][1])
    return pieces


def any_of(strings: Iterable[str]) -> re.Pattern[str]:
    """A pattern for any of `strings`, the longest first; it matches nothing if there are none."""
    longest_first = sorted(strings, key=lambda string: (-len(string), string))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def refused_roles(failures: dict[str, str]) -> dict[str, str]:
    refused = {}
    for role, codes in NEEDED.items():
        reason = next((failures[code] for code in codes if code in failures), None)
        if reason is None:
            continue
        if role in ("user", "assistant"):
            raise ChatFormatError(
                "the tokenizer's chat template cannot be rendered turn by turn: "
                f"{reason}. Give the tokenizer another chat_template, or none to use the plain one."
            )
        refused[role] = reason
    return refused


def rewrites_of(render: Render, gaps: Gaps, refused: dict[str, str]) -> dict[Pair, str]:
    """What the template does to the text of each pair's second turn; may refuse further roles."""
    rewrites: dict[Pair, str] = {}
    for pair, (code, index) in gaps.source.items():
        if pair[1] == REPLY or pair not in gaps.between:
            continue
        name = rewrite_of(render, code, index)
        if name is None:
            reason = f"it rewrites the text of {pair[1]} turns by more than stripping white space"
            refused.update(refused_roles(dict.fromkeys(NEEDED[pair[1]], reason)))
            gaps.refuse(pair[1])
        else:
            rewrites[pair] = name
    return rewrites


def edges_of(role: str, rewrites: dict[Pair, str]) -> Edges:
    """Texts that show how a turn of `role` may begin and end once the template has stripped it."""
    used = {name for pair, name in rewrites.items() if pair[1] == role}
    starts = ("x",) if used <= {"strip", "strip left"} else ("x", " x", "\nx")
    ends = ("x",) if used <= {"strip", "strip right"} else ("x", "x ", "x\n")
    return starts, ends


def closing_of(
    role: str,
    gaps: Gaps,
    controls: re.Pattern[str],
    eos_token: str | None,
    stable: Stable,
    edges: dict[str, Edges],
) -> str:
    """What follows a turn whoever speaks next, cut where no token straddles the cut."""
    after = gaps.after(role)
    head = _common_head([*after.values(), *gaps.ends.get(role, ())], controls)
    if role != "assistant":
        head += _common_space([gap[len(head) :] for gap in after.values()])
    following = after.get("user", "")
    if role == "assistant" and eos_token and eos_token in following and eos_token not in head:
        return following[: following.index(eos_token) + len(eos_token)]
    floor = max((match.end() for match in controls.finditer(head)), default=0)
    for length in range(len(head), floor, -1):
        cuts = (
            stable(gap[:length], gap[length:], edges[role][1], edges.get(to, ALONE)[0])
            for to, gap in after.items()
        )
        if all(cuts):
            return head[:length]
    return head[:floor]


def _common_head(texts: Sequence[str], controls: re.Pattern[str]) -> str:
    """The longest common beginning that ends inside no control token of any of `texts`."""
    # ruff takes this for paths; it is characters that are compared
    length = len(os.path.commonprefix(list(texts)))  # noqa: RUF071
    return texts[0][: min(_outside(text, length, controls) for text in texts)]


def _common_space(texts: Sequence[str]) -> str:
    """White space all texts begin with: safer in a closing, where it may join with the text."""
    head = os.path.commonprefix(list(texts))  # noqa: RUF071 - as above
    return head[: len(head) - len(head.lstrip())]


def _outside(text: str, length: int, controls: re.Pattern[str]) -> int:
    """`length`, or less if that is inside a control token of `text`."""
    starts = [m.start() for m in controls.finditer(text) if m.start() < length < m.end()]
    return min(starts, default=length)


def split_gaps(
    gaps: Gaps, closings: dict[str, str], rewrites: dict[Pair, str]
) -> tuple[dict[Pair, Opening], dict[str, str]]:
    openings, headers = {}, {}
    for (previous, role), gap in gaps.between.items():
        closing = closings[previous] if previous else ""
        if not gap.startswith(closing):
            continue  # an unusual order, which this template writes in an unusual way
        rest = gap[len(closing) :]
        if role == REPLY:
            headers[str(previous)] = rest
        else:
            openings[previous, role] = Opening(rest, rewrites[previous, role])
    return openings, headers


def _let_speakers_repeat(openings: dict[Pair, Opening], closings: dict[str, str]) -> None:
    """Templates that insist on alternating roles still have one way to open a turn: use that."""
    for previous in closings.keys() - {"system"}:
        openings.setdefault((previous, "user"), openings["assistant", "user"])
        openings.setdefault((previous, "assistant"), openings["user", "assistant"])


def lengthen_header(
    pieces: Pieces, role: str, controls: re.Pattern[str], stable: Stable, ends: Sequence[str]
) -> None:
    """Move the end of a closing into what comes next, so that asking for a reply reads something.

    Templates in the style of ``[INST] text [/INST]`` have no header. The first token of a reply is
    sampled from the logits of the header's last token, so there has to be one.
    """
    closing = pieces.closings[role]
    length = _outside(closing, len(closing) - 1, controls)
    while length > 0 and not stable(closing[:length], closing[length:], ends, ALONE[0]):
        length = _outside(closing, length - 1, controls)
    length = max(length, 0)
    if not stable(closing[:length], closing[length:], ends, ALONE[0]):
        return  # it cannot be helped: a reader has to keep the logits of the turn before
    pieces.closings[role], moved = closing[:length], closing[length:]
    pieces.headers[role] = moved
    for pair, opening in pieces.openings.items():
        if pair[0] == role:
            pieces.openings[pair] = replace(opening, prefix=moved + opening.prefix)
