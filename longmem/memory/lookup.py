"""The look-ups of one layer: which blocks its far queries choose."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longmem.config import MemoryConfig
from longmem.memory.blocks import with_neighbours
from longmem.memory.index import BlockIndex
from longmem.memory.lookups import PassLookups
from longmem.memory.reading import ReadSpan
from longmem.memory.shelf_plan import Grid
from longmem.memory.source import BlockSource
from longmem.memory.spec import LayerSpec
from longmem.memory.stored import Stored
from longmem.retrieval import BlockScorer, get_scorer

_ABOVE = 5000
"""`MemoryConfig.two_level_above` on a CPU, where it is "auto"."""

Chosen = tuple[tuple[int, ...], ...]
"""Blocks in stream order: one tuple for all KV heads, or one for each (MemoryConfig.selection)."""


class Lookup:
    """Index, scorer and selection of one layer.

    Args:
        spec: the layer.
        config: scorer, topk, contiguity, selection, representatives, two-level look-ups.
    """

    def __init__(self, spec: LayerSpec, config: MemoryConfig) -> None:
        self._scorer = get_scorer(config.scorer)
        n_repr = min(config.repr_topk, config.block_size)
        self.index = BlockIndex(spec, n_repr, grid=_grid(self._scorer, config, spec))
        """The representative keys, which are stored."""
        self._scored = self.index
        if self._scorer.form != "tokens":
            self._scored = BlockIndex(spec, config.repr_topk, self._scorer.form)
        self._pass = PassLookups(self._scorer, self._scored)
        self._by_head = config.selection == "kv_head"
        self._topk, self._contiguity = config.topk, config.contiguity
        self._begun = False

    @property
    def fused(self) -> bool:
        """Whether kernels can do a step's look-up for all KV heads from beginning to end."""
        by_kernels = self._scorer.fused and self.index.spec.kernels and not self.derived
        return by_kernels and not self._by_head and not self._contiguity

    @property
    def derived(self) -> bool:
        """Whether the index that is scored is not the one that is stored."""
        return self._scored is not self.index

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        return self.index.bytes + (self._scored.bytes if self.derived else 0)

    @property
    def row_bytes(self) -> int:
        """Bytes of what one look-up scores: rows, or summaries and the rows of some groups, too; the
        same after a resume."""
        loose, index = self._scored.rows.keys.nbytes, self._scored
        if index.shelves is None or not index.grouped:
            return loose
        _, summaries, counts = index.shelves.candidates(index.first)
        read = min(index.shelves.grid.probe, len(counts)) * index.spec.kv_heads
        return loose + summaries.nbytes + read * index.shelves.pages.page_bytes

    def add(self, raw: Tensor, mass: Tensor) -> None:
        """A block closed: its raw keys ``[H_kv, n, D]`` and what they received ``[H_kv, n]``."""
        self.index.add(raw, mass)
        if self.derived:
            self._scored.add(raw, mass)

    def attach(self, source: BlockSource) -> None:
        """Rows that the store holds may leave memory, and are read from there."""
        if self.index.shelves is not None:
            self.index.shelves.attach(source)

    def export(self, since: int) -> dict[str, Tensor]:
        """What a commit stores, tensors by name: the blocks from `since` on, and shelves that are not yet
        stored."""
        i = self.index.spec.index
        keys, counts = self.index.export(since)
        tensors = {f"representatives.{i}": keys.cpu(), f"counts.{i}": counts}
        return tensors | (self.index.shelves.export() if self.index.shelves else {})

    def restore(self, stored: Stored, blocks: int, first: int) -> None:
        """Go on with a stored index of `blocks` blocks, of which those from `first` on may be chosen.

        Raises:
            CorruptDataError: as `BlockIndex.restore`.
        """
        self.attach(stored.source)
        self.index.restore(stored, blocks, first)

    def add_derived(self, raw: Tensor) -> None:
        """A stored block's raw keys ``[H_kv, n, D]``, for the index that is not stored."""
        self._scored.add(raw, raw[..., 0])

    def begin(self, q_far: Tensor, spans: Sequence[ReadSpan]) -> None:
        """A pass of far queries ``[H, T, D]`` begins: its look-ups share one matrix product."""
        self._begun = sum(span.voters > 0 for span in spans) > 1
        if not self._begun:
            return
        queries: list[Tensor | None] = []
        start = 0
        for span in spans:
            queries.append(q_far[:, start : start + span.voters] if span.voters else None)
            start += span.tokens
        self._pass.begin(queries)

    def end(self) -> None:
        """The pass is through: let go of its buffers."""
        self._pass.end()

    def choose(self, i: int, q_far: Tensor) -> tuple[Chosen, Tensor]:
        """The blocks that span i's far queries ``[H, T, D]`` look up.

        Returns:
            The choice, and every candidate's score ``[N]`` summed over KV heads, oldest first.
        """
        best, total = self._best(i, q_far)
        # The one place where reading waits for the device: blocks are fetched by the host.
        return tuple(self._with_neighbours(row) for row in best.tolist()), total

    def choose_and_share(self, i: int, q_far: Tensor) -> tuple[Chosen, Tensor]:
        """As `choose`, with the `shares` of all candidates ``[N]``, on the host: they come with the choice,
        so that the device is waited for once."""
        best, total = self._best(i, q_far)
        shares = self._scorer.shares(total).float()
        both = torch.cat((best.int().flatten(), shares.view(torch.int32))).cpu()
        rows = both[: best.numel()].view(best.shape).tolist()
        return tuple(map(self._with_neighbours, rows)), both[best.numel() :].view(torch.float32)

    def shares(self, scores: Tensor) -> Tensor:
        """``[N]``: scores as shares that sum to 1, for people to read."""
        return self._scorer.shares(scores)

    def drop_front(self, first: int) -> None:
        """Blocks before `first` can be looked up no more; may move back to what was not released."""
        for index in {self.index, self._scored}:
            index.drop_front(first)

    def release(self, n_blocks: int) -> None:
        """All blocks are committed, and no `drop_front` will go back below `n_blocks`."""
        for index in {self.index, self._scored}:
            index.release(n_blocks)

    def truncate(self, n_blocks: int) -> None:
        """Forget the blocks from `n_blocks` on."""
        for index in {self.index, self._scored}:
            index.truncate(n_blocks)

    def _best(self, i: int, q_far: Tensor) -> tuple[Tensor, Tensor]:
        if not self._begun:
            self._pass.begin([q_far])
            i = 0
        ranked = self._contiguity > 0  # the best one's neighbours come first
        return self._pass.best(i, self._topk, by_head=self._by_head, ranked=ranked)

    def _with_neighbours(self, best: list[int]) -> tuple[int, ...]:
        blocks = with_neighbours(best, self._contiguity, self.index.first, len(self.index))
        return tuple(sorted(blocks))


def _grid(scorer: BlockScorer, config: MemoryConfig, spec: LayerSpec) -> Grid | None:
    """How blocks are grouped; None if look-ups never go through groups: the scorer cannot, it is not
    wanted, or there will never be so many candidates."""
    above = config.two_level_above
    if above == "auto":  # a kernel scans a million tokens' keys sooner than groups can be launched
        above = None if spec.kernels else _ABOVE
    if above is None or not scorer.log_masses or scorer.form != "tokens":
        return None
    if config.max_blocks is not None and config.max_blocks <= above:
        return None
    return Grid(
        above,
        config.two_level_shelf,
        config.two_level_group,
        config.two_level_probe,
        config.two_level_probe_reading,
        levels=2 if config.max_blocks is None else 1,  # dropped shelves could not be merged
    )
