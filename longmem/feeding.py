"""What is fed to a forward pass: tokens of sessions, with the spans they are read in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from longmem.memory import Decide, Reading, ReadSpan, SessionMemory


@dataclass(frozen=True, eq=False)
class Feed:
    """What one session reads in one forward pass.

    Args:
        memory: the session's memory.
        ids: token ids.
        spans: look-up spans covering them.
        turn_starts: offsets of ids that start a turn.
        trace: record which blocks the look-ups choose.
        decide: which layers look up at a span with voters; see `longmem.memory.Reading`.
    """

    memory: SessionMemory
    ids: Sequence[int]
    spans: Sequence[ReadSpan]
    turn_starts: Sequence[int] = ()
    trace: bool = False
    decide: Decide | None = None


@dataclass(eq=False)
class Fed:
    """What came of a `Feed`: logits ``[V]`` float32 of its last token, and the reading."""

    logits: Tensor
    reading: Reading


@dataclass(frozen=True)
class Segment:
    """Token ids of one turn with the spans they are read with."""

    ids: Sequence[int]
    spans: Sequence[ReadSpan]
    starts_turn: bool = True


def check_feeds(feeds: Sequence[Feed]) -> None:
    """Refuse what would corrupt a memory without a word.

    Raises:
        ValueError: spans do not cover the ids, or a memory is fed twice.
    """
    for feed in feeds:
        covered = sum(span.tokens for span in feed.spans)
        if covered != len(feed.ids) or not feed.ids:
            raise ValueError(f"look-up spans cover {covered} tokens, but {len(feed.ids)} are fed")
    if len({id(feed.memory) for feed in feeds}) < len(feeds):
        raise ValueError("a memory can be fed once in a pass; put its tokens into one Feed")


def passes(memory: SessionMemory, segments: Sequence[Segment], most: int) -> Iterator[Feed]:
    """Cut turns into passes of whole look-up spans, at most `most` tokens where spans allow it."""
    ids: list[int] = []
    spans: list[ReadSpan] = []
    starts: list[int] = []
    for segment in segments:
        at = 0
        for span in segment.spans:
            if ids and len(ids) + span.tokens > most:
                yield Feed(memory, ids, spans, starts)
                ids, spans, starts = [], [], []
            if at == 0 and segment.starts_turn:
                starts.append(len(ids))
            ids.extend(segment.ids[at : at + span.tokens])
            spans.append(span)
            at += span.tokens
    if ids:
        yield Feed(memory, ids, spans, starts)
