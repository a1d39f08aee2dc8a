"""The memory of one session in one attention layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from longmem.config import MemoryConfig
from longmem.memory.blocks import BlockIndex, BlockTable
from longmem.memory.placement import BlockTier
from longmem.memory.reading import AttentionCall, Choice, Reading, ReadSpan
from longmem.memory.spec import LayerSpec
from longmem.memory.window import BufferPlace, LocalBuffer
from longmem.memory.working_set import WorkingSet
from longmem.ops.rotary import Angles
from longmem.ops.working_set_attention import attend
from longmem.retrieval import get_scorer


@dataclass(frozen=True, eq=False)
class LayerMark:
    """What `rewind` needs to bring a layer back.

    Args:
        first, length, place: which tokens its buffer held, and where.
        saved: what reading on destroys: the attention sums ``[H_kv, L]`` of a full layer, the rows
            ``[2, H_kv, L, D]`` of a sliding one.
        closed: blocks closed (-1: not even the initial tokens had left the window).
    """

    first: int
    length: int
    place: BufferPlace
    saved: Tensor
    closed: int


class LayerMemory(ABC):
    """K/V of one layer; subclasses differ in what they keep beyond the window."""

    def __init__(self, spec: LayerSpec, n_local: int) -> None:
        self.spec = spec
        self.n_local = n_local
        self.local = LocalBuffer(spec)
        self._q_near = torch.empty(0)
        self._q_far = torch.empty(0)
        self._far: Angles | None = None
        if spec.rotary is not None:
            at = torch.tensor([n_local], device=spec.rotary.inv_freq.device)
            self._far = spec.rotary.angles(at, spec.dtype)

    def read(
        self, q: Tensor, k: Tensor, v: Tensor, reading: Reading, call: AttentionCall
    ) -> Tensor:
        """Take in T tokens and let them attend.

        Args:
            q: ``[H, T, D]`` un-rotated queries.
            k, v: ``[H_kv, T, D]`` un-rotated keys, values.
            reading: positions and look-up spans of the T tokens.
            call: the layer's attention settings.

        Returns:
            Attention output ``[H, T, D]``.
        """
        angles = reading.angles(self.spec.rotary, q.dtype) if self.spec.rotary else None
        q_near, q_far = self._rotate(q, angles)
        if len(reading.spans) == 1:
            return self._read_span(q_near, q_far, k, v, angles, 0, reading, call)
        out, start = torch.empty_like(q), 0
        for i, span in enumerate(reading.spans):
            part = slice(start, start + span.tokens)
            turned = None if angles is None else (angles[0][part], angles[1][part])
            out[:, part] = self._read_span(
                q_near[:, part], q_far[:, part], k[:, part], v[:, part], turned, i, reading, call
            )
            start += span.tokens
        return out

    @abstractmethod
    def _read_span(
        self,
        q_near: Tensor,
        q_far: Tensor,
        k: Tensor,
        v: Tensor,
        angles: Angles | None,
        i: int,
        reading: Reading,
        call: AttentionCall,
    ) -> Tensor:
        """Take in the tokens of span i of `reading`; output ``[H, T, D]``."""

    @abstractmethod
    def mark(self) -> LayerMark:
        """Where the layer stands now."""

    @abstractmethod
    def rewind(self, mark: LayerMark) -> None:
        """Back to `mark`, which must not lie behind an earlier `rewind`."""

    def load(
        self, k: Tensor, v: Tensor, mass: Tensor | None, first: int, place: BufferPlace
    ) -> None:
        """Let the local buffer hold exactly these raw keys and values ``[H_kv, L, D]`` of the
        tokens from position `first` on, with their attention mass ``[H_kv, L]``."""
        rotary, angles = self.spec.rotary, None
        if rotary is not None:
            at = torch.arange(first, first + k.shape[1], device=rotary.inv_freq.device)
            angles = rotary.angles(at, self.spec.dtype)
        self.local.load(k, v, mass, angles, first, place)

    def _rotate(self, q: Tensor, angles: Angles | None) -> tuple[Tensor, Tensor]:
        rotary = self.spec.rotary
        if rotary is None or angles is None or self._far is None:
            return q, q
        return rotary.rotate(q, angles), rotary.rotate(q, self._far)


class SlidingLayer(LayerMemory):
    """A layer with a sliding window of its own: what leaves the window is gone for it."""

    def __init__(self, spec: LayerSpec) -> None:
        assert spec.sliding is not None
        super().__init__(spec, spec.sliding)

    def _read_span(
        self,
        q_near: Tensor,
        q_far: Tensor,
        k: Tensor,
        v: Tensor,
        angles: Angles | None,
        i: int,
        reading: Reading,
        call: AttentionCall,
    ) -> Tensor:
        if reading.spans[i].voters:
            self.local.drop(max(0, len(self.local) - self.n_local + 1))
        self.local.append(k, v, angles)
        none = self.local.raw[:, :0]
        out, _ = attend(
            q_near, q_far, none, none, self.local.raw, self.local.rot, self.local.v,
            n_local=self.n_local, scaling=call.scaling, keep_pending=False,
            softcap=call.softcap, sinks=call.sinks,
        )  # fmt: skip
        return out

    def mark(self) -> LayerMark:
        """A copy of the window: unlike blocks, dropped tokens could not be had back."""
        local = self.local
        rows = torch.stack((local.raw, local.v))
        return LayerMark(local.first, len(local), local.place, rows, 0)

    def rewind(self, mark: LayerMark) -> None:
        k, v = mark.saved
        self.load(k, v, None, mark.first, mark.place)


class FullLayer(LayerMemory):
    """A full-attention layer: initial tokens, semantic blocks, pending tokens, window.

    Args:
        spec: the layer.
        config: the memory settings.
        table: where blocks end; shared by the session's layers.
        host_bytes: this layer's part of config.host_bytes.
    """

    def __init__(
        self, spec: LayerSpec, config: MemoryConfig, table: BlockTable, host_bytes: int
    ) -> None:
        super().__init__(spec, config.n_local)
        self.table = table
        self.index = BlockIndex(spec, min(config.repr_topk, config.block_size))
        lookup = config.lookup_layers
        self.indexed = lookup == "all" or spec.index in lookup
        """Whether representatives are kept; also with topk = 0, which a later process may raise."""
        self._looks_up = config.topk > 0 and self.indexed
        attends = config.topk > 0 and attends_blocks(spec, config)
        self.tier = BlockTier(spec.index, host_bytes, attends)
        self.working_set = WorkingSet(
            spec,
            table.n_init,
            config.topk if attends else 0,
            config.block_size,
            config.far_positions == "ordered",
        )
        self.closed = -1
        """Closed blocks; -1 while not even the initial tokens have left the window."""
        self._topk = config.topk
        self._scorer = get_scorer(config.scorer)
        self.fetched = 0
        """Blocks placed into the working set so far."""

    def _read_span(
        self,
        q_near: Tensor,
        q_far: Tensor,
        k: Tensor,
        v: Tensor,
        angles: Angles | None,
        i: int,
        reading: Reading,
        call: AttentionCall,
    ) -> Tensor:
        span = reading.spans[i]
        if span.voters:
            self._refresh(q_far[:, : span.voters], i, span, reading)
        local, far = self.local, self.working_set
        local.append(k, v, angles)
        out, mass = attend(
            q_near, q_far, far.k, far.v, local.raw, local.rot, local.v,
            n_local=self.n_local, scaling=call.scaling, softcap=call.softcap, sinks=call.sinks,
        )  # fmt: skip
        local.mass.add_(mass)
        return out

    def _refresh(self, q_far: Tensor, i: int, span: ReadSpan, reading: Reading) -> None:
        """Close the blocks that are due, then choose and place the span's blocks."""
        self._close(self.table.closed(self.local.first + len(self.local)))
        if self._looks_up and len(self.index):
            reading.chosen[i] = self._look_up(q_far, reading)
        chosen = reading.chosen.get(i, ())
        self.working_set.set_blocks([self.tier.get(b, *self.table.span(b)) for b in chosen])
        self.fetched += len(chosen)

    def _look_up(self, q_far: Tensor, reading: Reading) -> tuple[int, ...]:
        """The topk blocks of the span's far queries ``[H, T, D]``, in stream order."""
        scores = self._scorer.score(q_far, self.index.representatives)
        best = scores.topk(min(self._topk, len(self.index))).indices.sort().values
        blocks = tuple(best.tolist())
        if reading.trace:
            shares = self._scorer.shares(scores)[best].tolist()
            reading.choices.append(Choice(self.spec.index, blocks, tuple(shares)))
        return blocks

    def _close(self, due: int) -> None:
        """Move initial tokens and blocks that are due out of the local buffer."""
        if self.closed < 0 <= due:
            n = self.table.n_init
            self.working_set.set_initial(self.local.raw[:, :n], self.local.v[:, :n])
            self.local.drop(n)
            self.closed = 0
        while self.closed < due:
            start, stop = self.table.span(self.closed)
            n = stop - start
            raw = self.local.raw[:, :n]
            kv = torch.stack((raw, self.local.v[:, :n]))
            if self.indexed:
                self.index.append(self.index.choose(raw, self.local.mass[:, :n]))
            self.tier.put(self.closed, kv)
            self.local.drop(n)
            self.closed += 1

    def mark(self) -> LayerMark:
        """Where the layer stands now; K/V is not copied, only the attention sums are."""
        local = self.local
        return LayerMark(local.first, len(local), local.place, local.mass.clone(), self.closed)

    def rewind(self, mark: LayerMark) -> None:
        if self.closed == mark.closed and self.local.place == mark.place:
            self.local.rewind(mark.length, mark.saved)
        else:
            k, v = self._rows_since(mark)
            self.load(k, v, mark.saved, mark.first, mark.place)
        self.truncate(mark.closed)

    def truncate(self, closed: int) -> None:
        """Forget the blocks from `closed` on, and the initial tokens if it is -1."""
        blocks = max(closed, 0)
        self.index.truncate(blocks)
        self.tier.truncate(blocks)
        if closed < 0:
            k, v = self.working_set.initial
            self.working_set.set_initial(k[:, :0], v[:, :0])
        self.working_set.set_blocks([])
        self.closed = closed

    def _rows_since(self, mark: LayerMark) -> tuple[Tensor, Tensor]:
        """Raw K/V ``[H_kv, mark.length, D]`` from mark.first on, some of it in blocks by now."""
        parts = []
        if mark.closed < 0 <= self.closed:
            parts.append(torch.stack(self.working_set.initial))
        for b in range(max(mark.closed, 0), max(self.closed, 0)):
            parts.append(self.tier.get(b, *self.table.span(b)).to(self.spec.device))
        parts.append(torch.stack((self.local.raw, self.local.v)))
        k, v = torch.cat(parts, dim=2)[:, :, : mark.length]
        return k, v


def attends_blocks(spec: LayerSpec, config: MemoryConfig) -> bool:
    """Whether a layer attends to looked-up blocks: it looks up itself or shares a layer below."""
    lookup = config.lookup_layers
    return spec.sliding is None and (lookup == "all" or spec.index >= lookup[0])
