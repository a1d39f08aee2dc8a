"""What is fed to a forward pass: tokens of sessions, with the spans they are read in."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

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
        best: tell the likeliest token after the last one, too.
        asks: whether `decide` may say no.
    """

    memory: SessionMemory
    ids: Sequence[int]
    spans: Sequence[ReadSpan]
    turn_starts: Sequence[int] = ()
    trace: bool = False
    decide: Decide | None = None
    best: bool = False
    asks: bool = True


@dataclass(eq=False)
class Fed:
    """What came of a `Feed`: logits ``[V]`` float32 of its last token, the reading, and the token of
    the greatest logit where the feed asked for it."""

    logits: Tensor
    reading: Reading
    best: int | None = None


@dataclass(frozen=True)
class Segment:
    """Token ids of one turn with the spans they are read with."""

    ids: Sequence[int]
    spans: Sequence[ReadSpan]
    starts_turn: bool = True


class Request(Protocol):
    """What one session, or one caller, wants read next."""

    @property
    def tokens(self) -> int:
        """How many, if there is room for all."""

    def within(self, room: int, must: bool) -> Sequence[Feed]:
        """The feeds of one pass, at most `room` tokens; none if they do not fit.

        What is given has to be read: the request is for what follows it from then on.

        Args:
            room: tokens the pass has left for it.
            must: give the smallest part there is, even if it is larger than `room`.
        """


class Together:
    """Feeds that go into one pass, whole."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = feeds
        self.tokens = sum(len(feed.ids) for feed in feeds)

    def within(self, room: int, must: bool) -> Sequence[Feed]:
        """As `Request.within`."""
        return self._feeds if must or self.tokens <= room else ()


class Unread:
    """Turns still to be read, in as many passes as it takes: cut between look-up spans only.

    Args:
        memory: the session's memory.
        segments: the turns.
        limit: most tokens of one pass, however much room there is; a span is never cut.
    """

    def __init__(self, memory: SessionMemory, segments: Sequence[Segment], limit: int) -> None:
        self._memory, self._limit = memory, limit
        self._spans: deque[tuple[Segment, int, ReadSpan]] = deque()
        self.tokens = 0
        for segment in segments:
            at = 0
            for span in segment.spans:
                self._spans.append((segment, at, span))
                at += span.tokens
            self.tokens += at

    def within(self, room: int, must: bool) -> Sequence[Feed]:
        """As `Request.within`."""
        room = min(room, self._limit)
        ids: list[int] = []
        spans: list[ReadSpan] = []
        starts: list[int] = []
        while self._spans:
            segment, at, span = self._spans[0]
            if len(ids) + span.tokens > room and (ids or not must):
                break
            self._spans.popleft()
            if at == 0 and segment.starts_turn:
                starts.append(len(ids))
            ids.extend(segment.ids[at : at + span.tokens])
            spans.append(span)
        self.tokens -= len(ids)
        return [Feed(self._memory, ids, spans, starts)] if ids else ()


def check_feeds(feeds: Sequence[Feed], vocabulary: int) -> None:
    """Refuse what would corrupt a memory without a word, or spoil the pass of others.

    Args:
        feeds: what one caller wants read in one pass.
        vocabulary: token ids are below it.

    Raises:
        ValueError: spans do not cover the ids, an id is unknown, or a memory is fed twice.
    """
    for feed in feeds:
        covered = sum(span.tokens for span in feed.spans)
        if covered != len(feed.ids) or not feed.ids:
            raise ValueError(f"look-up spans cover {covered} tokens, but {len(feed.ids)} are fed")
        if not 0 <= min(feed.ids) <= max(feed.ids) < vocabulary:
            raise ValueError(f"token ids have to lie within 0 .. {vocabulary - 1}")
    if len({id(feed.memory) for feed in feeds}) < len(feeds):
        raise ValueError("a memory can be fed once in a pass; put its tokens into one Feed")
