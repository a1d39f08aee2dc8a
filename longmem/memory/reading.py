"""What one forward pass reads for one session: positions, look-up spans, and what was chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from longmem.ops.rotary import Angles, Rotary


@dataclass(frozen=True)
class ReadSpan:
    """Consecutive tokens that attend to one choice of blocks.

    Args:
        tokens: how many.
        voters: leading tokens whose queries choose the blocks; 0 reuses the last working set.
        layers: the look-up layers that chose anew; None is all of them.
    """

    tokens: int
    voters: int
    layers: tuple[int, ...] | None = None


Decide = Callable[[int, Tensor], bool]
"""(look-up layer, its far queries ``[H, T, D]`` of the span's voters) -> whether it looks up again."""


@dataclass(frozen=True)
class Choice:
    """The outcome of one look-up of one layer."""

    layer: int
    blocks: tuple[int, ...]
    shares: tuple[float, ...]


@dataclass(eq=False)
class Reading:
    """One session's part of a forward pass.

    Args:
        start: absolute position of the first token.
        spans: cover the tokens in order.
        trace: whether `choices` records every look-up.
        decide: asked by each look-up layer at a span with voters whether it looks up; None: all do,
            or those of `ReadSpan.layers`.
    """

    start: int
    spans: Sequence[ReadSpan]
    trace: bool = False
    decide: Decide | None = None
    turn_starts: Sequence[int] = ()
    """Absolute positions at which turns start."""
    refreshed: dict[int, list[int]] = field(default_factory=dict)
    """Per span, the layers that looked up."""
    choices: list[Choice] = field(default_factory=list)
    chosen: dict[int, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    """Per span, the blocks chosen by the nearest look-up layer so far (`longmem.memory.lookup.Chosen`)."""
    _angles: dict[tuple[Rotary, torch.dtype], Angles] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Number of tokens read."""
        return sum(span.tokens for span in self.spans)

    def angles(self, rotary: Rotary, dtype: torch.dtype) -> Angles:
        """Rotation angles of the tokens' absolute positions, computed once for all layers."""
        key = (rotary, dtype)
        if key not in self._angles:
            device = rotary.inv_freq.device
            positions = torch.arange(self.start, self.start + self.tokens, device=device)
            self._angles[key] = rotary.angles(positions, dtype)
        return self._angles[key]


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """Settings an attention layer passes with each call.

    Args:
        scaling: factor of the logits.
        softcap: Gemma 2's cap of the logits, or None.
        sinks: ``[H]`` sink logits (GPT-OSS), or None.
    """

    scaling: float
    softcap: float | None
    sinks: Tensor | None
