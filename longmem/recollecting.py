"""Which turns a query brings to mind, without a reply and without a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from longmem.errors import ChatFormatError, InputError
from longmem.feeding import Feed
from longmem.history import History, as_turn
from longmem.memory import Choice, ReadSpan, SessionMemory
from longmem.recall import Tally, recalled_by
from longmem.store import SessionHandle, TurnRecord
from longmem.types import Recollection, Turn

if TYPE_CHECKING:
    from longmem.conversation import Conversation

_SNIPPET = 200
"""Most characters of a snippet."""


def recollect(conversation: Conversation, query: str, k: int, text: bool) -> list[Recollection]:
    """Up to k turns from memory, then up to k from the full text; see `longmem.Session.recall`.

    Raises:
        InputError: the query is refused, or `k` is no positive number.
        SessionInUseError: an exchange is under way.
        StoreError: the store has no full-text search.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(f"recall gives the best k turns; k is a number from 1 on, not {k!r}")
    asked = Turn("user", query)
    conversation.check(asked)
    found: list[Recollection] = []
    with conversation.transaction():  # never committed: what it reads is forgotten again
        memory, ledger = conversation.memory, conversation.ledger
        if memory is not None and memory.n_blocks:
            choices = _lookups(conversation, memory, asked)
            tally = Tally(choices, memory, ledger.n_tokens)
            best = recalled_by(tally, ledger.history)[:k]
            found = [
                Recollection(
                    each.turn,
                    each.score,
                    "memory",
                    _snippet(each.turn.index, tally, ledger.history),
                )
                for each in best
            ]
    if text and ledger.handle is not None:
        found += _matches(ledger.handle, query, k)
    return found


def _lookups(conversation: Conversation, memory: SessionMemory, asked: Turn) -> list[Choice]:
    """What the layers look up for the tokens of a question, and for the first token of its reply: the
    latter is what decides in most models, the former adds turns of the same matter."""
    engine = conversation.engine
    try:
        (segment,) = conversation.segments([asked])
        ids, spans = list(segment.ids), list(segment.spans)
    except ChatFormatError:  # the template takes no user turn here
        ids = engine.chat.turn_ids("user", asked.text, previous="assistant")
        spans = engine.spans(len(ids))
    header = engine.chat.reply_header_ids("user")
    choices = _read(conversation, memory, ids, spans)
    if header[:-1]:
        _read(conversation, memory, header[:-1], engine.spans(len(header) - 1))
    return choices + _read(
        conversation, memory, header[-1:], [ReadSpan(1, 1)], starts=len(header) == 1
    )


def _read(
    conversation: Conversation,
    memory: SessionMemory,
    ids: Sequence[int],
    spans: Sequence[ReadSpan],
    starts: bool = True,
) -> list[Choice]:
    """Read one piece, span by span, and tell what was looked up."""
    choices: list[Choice] = []
    at = 0
    for span in spans:
        part = ids[at : at + span.tokens]
        turn_starts = [0] if starts and at == 0 else []
        feed = Feed(memory, part, [span], turn_starts, trace=True)
        (fed,) = conversation.engine.forward([feed])
        choices += fed.reading.choices
        at += span.tokens
    return choices


def _snippet(index: int, tally: Tally, history: History) -> str:
    """The part of a turn's text where its best block lies, as near as positions tell."""
    (turn,) = history.turns(index, index + 1)
    if len(turn.text) <= _SNIPPET:
        return turn.text
    best = tally.best_block(turn.start, turn.stop)
    start = max(0, best[0] - turn.start) / len(turn.ids)
    at = min(int(start * len(turn.text)), len(turn.text) - _SNIPPET)
    return _cut(turn.text, at)


def _cut(text: str, at: int) -> str:
    """`_SNIPPET` characters from `at`, marked where something is left out."""
    before, after = "…" if at else "", "…" if at + _SNIPPET < len(text) else ""
    return f"{before}{text[at : at + _SNIPPET]}{after}"


def _matches(handle: SessionHandle, query: str, k: int) -> list[Recollection]:
    hits = handle.search(query, k)
    return [
        Recollection(as_turn(_turn(handle, index)), score, "text", snippet)
        for index, score, snippet in hits
    ]


def _turn(handle: SessionHandle, index: int) -> TurnRecord:
    return handle.turns(index, index + 1)[0]
