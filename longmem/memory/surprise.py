"""Block boundaries before tokens the model did not expect (EM-LLM)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from longmem.memory.refinement import best_split, similarity

KeyReader = Callable[[int, int], Tensor]
"""(start, stop) -> keys ``[stop - start, C]`` of tokens that were read."""


@dataclass(frozen=True)
class Edge:
    """A boundary between blocks that nothing can move any more.

    Args:
        position: absolute position of the first token of the new block.
        known_at: how many tokens had to exist to know; the same however they were fed.
    """

    position: int
    known_at: int


@dataclass(frozen=True)
class SurpriseMark:
    """A point `SurpriseBoundaries.rewind` can go back to."""

    position: int
    last: int
    tentative: int | None
    recent: tuple[float, ...]


class SurpriseBoundaries:
    """Finds where blocks end, token by token; the same however the stream is cut into passes.

    A block begins before token t if ``-log P(x_t | x_<t) > mu + gamma * sigma``, mean and standard
    deviation of the surprise being taken over the last `window` tokens before t (EM-LLM, arXiv
    2407.09450, equation 1); never before that many were seen. It also begins at the first token of
    a turn, whose surprise says nothing and is not counted, and after `block_size` tokens. A block
    has at least `min_block` tokens: boundaries that come sooner are left out.

    With refinement (EM-LLM, algorithm 1) a boundary is moved back, to where its keys separate best
    the tokens between the boundary before it and the one after it; the first tokens of turns stay
    where they are. It is final once the boundary after it is known, which is at most
    ``block_size + 1`` tokens after its final position.

    Args:
        start: end of the initial tokens, where the first block begins.
        gamma: standard deviations above the mean.
        window: tokens that mean and deviation are taken over.
        min_block, block_size: fewest and most tokens in a block.
        refine: what moving a boundary improves; "none" moves none.
    """

    def __init__(
        self,
        start: int,
        *,
        gamma: float,
        window: int,
        min_block: int,
        block_size: int,
        refine: Literal["none", "modularity", "conductance"] = "none",
    ) -> None:
        self._start = self._last = start  # _last: the last final edge
        self._gamma = gamma
        self._min_block = min_block
        self._block_size = block_size
        self._refine = refine
        self._position = 0
        self._tentative: int | None = None  # an edge after _last that may still move back
        self._recent: deque[float] = deque(maxlen=window)

    @property
    def position(self) -> int:
        """Tokens read so far."""
        return self._position

    def read(
        self,
        first: int,
        surprises: Tensor,
        turn_starts: Collection[int] = (),
        keys: KeyReader | None = None,
    ) -> list[Edge]:
        """Take in the next tokens.

        Args:
            first: absolute position of the first of them; must be `position`.
            surprises: ``[T]`` -log p of each in nats, finite; any value where a turn starts.
            turn_starts: absolute positions at which turns start.
            keys: read where boundaries are refined, for tokens from the last final edge on.

        Returns:
            The edges that became final, in order.
        """
        assert first == self._position, f"expected token {self._position}, got {first}"
        edges: list[Edge] = []
        for surprise in surprises.tolist():
            at_turn = self._position in turn_starts
            if self._begins_block(surprise, at_turn):
                edges += self._boundary(at_turn, keys)
            if not at_turn:
                self._recent.append(surprise)
            self._position += 1
        return edges

    def mark(self) -> SurpriseMark:
        """The present state, to go back to."""
        return SurpriseMark(self._position, self._last, self._tentative, tuple(self._recent))

    def rewind(self, mark: SurpriseMark) -> None:
        """Forget everything read after `mark`."""
        self._position, self._last, self._tentative = mark.position, mark.last, mark.tentative
        self._recent.clear()
        self._recent.extend(mark.recent)

    def export(self) -> dict[str, Tensor]:
        """The state as tensors, for `load`."""
        tentative = -1 if self._tentative is None else self._tentative
        return {
            "place": torch.tensor([self._position, self._last, tentative]),
            "recent": torch.tensor(list(self._recent), dtype=torch.float64),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on as what exported `state` would."""
        position, last, tentative = state["place"].tolist()
        recent = tuple(state["recent"].tolist())
        self.rewind(SurpriseMark(position, last, None if tentative < 0 else tentative, recent))

    def _begins_block(self, surprise: float, at_turn: bool) -> bool:
        """Whether the token at `position` is the first of a block, as far as known now."""
        length = self._position - (self._last if self._tentative is None else self._tentative)
        if self._position <= self._start or length < self._min_block:
            return False
        return at_turn or length >= self._block_size or self._unexpected(surprise)

    def _unexpected(self, surprise: float) -> bool:
        """Equation 1. Sums are exact, so that no rounding depends on how tokens were fed."""
        n = len(self._recent)
        if n < (self._recent.maxlen or 0):
            return False
        mean = math.fsum(self._recent) / n
        variance = math.fsum((x - mean) ** 2 for x in self._recent) / n
        return surprise > mean + self._gamma * math.sqrt(variance)

    def _boundary(self, at_turn: bool, keys: KeyReader | None) -> list[Edge]:
        """A block begins at `position`: the edges that this makes final."""
        here, known_at = self._position, self._position + 1
        edges: list[Edge] = []
        if self._tentative is not None:
            self._last = self._refined(self._tentative, here, keys)
            edges.append(Edge(self._last, known_at))
            self._tentative = None
        if self._refine == "none" or at_turn:
            self._last = here
            edges.append(Edge(here, known_at))
        else:
            self._tentative = here
        return edges

    def _refined(self, edge: int, following: int, keys: KeyReader | None) -> int:
        """Where an edge ends up, given the boundary after it."""
        assert self._refine != "none"
        assert keys is not None, "refining boundaries needs keys"
        first = max(self._last + self._min_block, following - self._block_size)
        a = similarity(keys(self._last, following))
        return self._last + best_split(a, self._refine, first - self._last, edge - self._last)
