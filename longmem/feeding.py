"""What is fed to a forward pass: tokens of sessions, with the spans they are read in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from longmem.memory import Reading, ReadSpan, SessionMemory


@dataclass(frozen=True, eq=False)
class Feed:
    """What one session reads in one forward pass.

    Args:
        memory: the session's memory.
        ids: token ids.
        spans: look-up spans covering them.
        turn_starts: offsets of ids that start a turn.
        trace: record which blocks the look-ups choose.
    """

    memory: SessionMemory
    ids: Sequence[int]
    spans: Sequence[ReadSpan]
    turn_starts: Sequence[int] = ()
    trace: bool = False


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


def passes(
    memory: SessionMemory, segments: Sequence[Segment], most: int, trace: bool
) -> Iterator[Feed]:
    """Cut turns into passes of whole look-up spans, at most `most` tokens where spans allow it."""
    ids: list[int] = []
    spans: list[ReadSpan] = []
    starts: list[int] = []
    for segment in segments:
        at = 0
        for span in segment.spans:
            if ids and len(ids) + span.tokens > most:
                yield Feed(memory, ids, spans, starts, trace)
                ids, spans, starts = [], [], []
            if at == 0 and segment.starts_turn:
                starts.append(len(ids))
            ids.extend(segment.ids[at : at + span.tokens])
            spans.append(span)
            at += span.tokens
    if ids:
        yield Feed(memory, ids, spans, starts, trace)
