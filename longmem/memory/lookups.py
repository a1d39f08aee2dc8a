"""The look-ups of one layer in one forward pass, many of them in one product with the index."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longmem.memory.index import BlockIndex
from longmem.memory.two_level import GroupLookups
from longmem.ops.block_scoring import Bounds, Choice, choose, fold_blocks, score_and_choose
from longmem.retrieval import BlockScorer

_GROUP_BYTES = 64 * 2**20
_TILE_BYTES = 8 * 2**20
_TILE_BYTES_GPU = 256 * 2**20
_WIDE = 16


class PassLookups:
    """Scores the blocks of one index for every span of a pass.

    A look-up reads the whole index; one alone is bound by memory. The spans of a pass are taken in
    groups whose queries go through one matrix product with the index, tile by tile, each tile small
    enough to stay in cache until its blocks are folded. Blocks that close while a group is read are
    folded when they are there, so that `scores` equals ``scorer.score(q, index.rows)`` at its time.
    Where the index is grouped, that is how the blocks on no full shelf are read; for those on
    shelves the group shares its estimates, and each span reads groups of its own (`GroupLookups`).
    Where kernels serve the index and compute the scorer, they fold, count and choose.

    Args:
        scorer: how blocks are scored.
        index: rows of the scorer's form.
        group_bytes: most bytes of folded logits a group may hold.
        tile_bytes: bytes of logits computed at once; None fits the device.
    """

    def __init__(
        self,
        scorer: BlockScorer,
        index: BlockIndex,
        *,
        group_bytes: int = _GROUP_BYTES,
        tile_bytes: int | None = None,
    ) -> None:
        self._scorer = scorer
        self._index = index
        self._group_bytes = group_bytes
        self._tile_bytes = tile_bytes
        self._kernels = scorer.fused and index.spec.kernels
        self._scaling = index.spec.scaling if self._kernels else 1.0  # what rows of queries lack
        self._two_level = GroupLookups(scorer, index, self._scaling)
        self._alone: Tensor | None = None  # the query of a pass with one span: nothing to share
        self._long: list[bool] = []  # spans of several tokens
        self._rows: list[Tensor | None] = []  # [H_kv, R, D'] of spans that are in no group yet
        self._slices: dict[int, slice] = {}  # where the group's spans lie in _group
        self._group = torch.empty(0)  # [H_kv, R, D'], rows of all spans of the group
        self._folded: list[Tensor] = []  # each [H_kv, R, n]: blocks _first .. _seen, in order
        self._first = self._seen = 0

    def begin(self, queries: Sequence[Tensor | None]) -> None:
        """A pass starts.

        Args:
            queries: per span the far queries ``[H, T, D]`` of its voters; None where it has none.
        """
        self.end()
        self._long = [q is not None and q.shape[1] > 1 for q in queries]
        if len(queries) == 1:
            self._alone = queries[0]
            return
        self._rows = [None if q is None else self._rows_of(q) for q in queries]

    def best(
        self, i: int, k: int, *, by_head: bool = False, ranked: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The `k` best candidates for span i, all if there are fewer, and every candidate's score ``[N]``
        float32 summed over KV heads. As for `scores`; nothing waits for the device.

        Args:
            i: the span.
            k: how many.
            by_head: every KV head chooses for itself.
            ranked: the best comes first; otherwise they come in no order.

        Returns:
            Numbers of blocks ``[1, k]``, or ``[H_kv, k]`` where each KV head chooses, and the scores.
        """
        first = self._index.first
        n = len(self._index) - first
        if self._alone is not None and self._kernels and not self._index.grouped:
            found = self._fused(self._alone, min(k, n), by_head)
            ids, total = found.ids.view(-1, min(k, n)), found.totals[0, :n]
            rows = found.scores[0, :, :n] if by_head else total[None]
        else:
            scores = self.scores(i)
            total = scores.sum(0)
            rows = scores if by_head else total[None]
            if not self._kernels:
                return rows.topk(min(k, n), dim=1).indices + first, total
            ids = choose(rows, k, by_head=True) + first
        if ranked:
            order = rows.gather(1, ids.long() - first).argsort(dim=1, descending=True, stable=True)
            ids = ids.gather(1, order)
        return ids, total

    def scores(self, i: int) -> Tensor:
        """Scores ``[H_kv, N]`` float32 of the candidates ``index.first .. len(index) - 1`` for span i.

        To be called in order of i. Between `begin` and the last call the index may only grow, and
        drop old blocks.
        """
        if self._alone is not None:
            return self._score_alone(self._alone, self._probe(i))
        if i not in self._slices:
            self._begin_group(i)
        self._fold_new_blocks()
        own, dropped = self._slices[i], self._index.loose - self._first
        folded = torch.cat([part[:, own] for part in self._folded], dim=2)[..., dropped:]
        if self._index.grouped:
            scores = self._two_level.scores(self._group, own, folded, self._probe(i))
        else:
            scores = self._scorer.tally(folded)
        if i == len(self._rows) - 1:
            self.end()
        return scores

    def end(self) -> None:
        """Let go of all buffers."""
        self._alone = None
        self._rows, self._slices, self._folded = [], {}, []
        self._group = torch.empty(0)
        self._two_level.end()

    def _probe(self, i: int) -> int:
        """Groups per KV head that span i reads."""
        grid = self._index.grid
        if grid is None:
            return 0
        return grid.probe_reading if self._long[i] else grid.probe

    def _score_alone(self, q: Tensor, probe: int) -> Tensor:
        """`scores` of a pass with one span."""
        index, scorer = self._index, self._scorer
        if not index.grouped:
            if self._kernels:
                return self._fused(q, 1, False).scores[0, :, : len(index) - index.first]
            return scorer.score(q, index.rows)
        rows = self._rows_of(q)
        if self._kernels:
            folded = self._folded_by_kernel(rows, index.loose)
        else:
            loose = index.rows
            logits = (rows @ loose.keys.mT).float()
            folded = scorer.fold(logits, loose) if loose.n_blocks else logits
        return self._two_level.scores(rows, slice(0, rows.shape[1]), folded, probe)

    def _rows_of(self, q: Tensor) -> Tensor:
        """Far queries ``[H, T, D]`` as rows ``[H_kv, R, D']``, scaled but for `_scaling`."""
        rows = self._scorer.rows(q, self._index.spec.kv_heads)
        return rows if self._kernels else rows * self._index.spec.scaling

    def _fused(self, q: Tensor, k: int, by_head: bool) -> Choice:
        """The look-up of a pass with one span, from beginning to end by kernels."""
        index = self._index
        bounds = Bounds(len(index) - index.first, index.most_rows)
        return score_and_choose(
            self._rows_of(q)[None], index.table, bounds, k=k, scaling=self._scaling, by_head=by_head
        )

    def _folded_by_kernel(self, rows: Tensor, first: int) -> Tensor:
        """``[H_kv, R, n]``: `BlockScorer.fold` of the blocks from `first` on."""
        row = self._index.row._replace(first=first)
        return fold_blocks(rows, row, scaling=self._scaling, most_rows=self._index.most_rows)

    def _begin_group(self, i: int) -> None:
        """Take span i and as many after it as the budget allows."""
        spec = self._index.spec
        room = self._group_bytes // (4 * spec.kv_heads * max(self._index.width, 1))
        parts: list[Tensor] = []
        self._slices, taken = {}, 0
        for j in range(i, len(self._rows)):
            rows = self._rows[j]
            if rows is None:
                continue
            if parts and taken + rows.shape[1] > room:
                break
            parts.append(rows)
            self._slices[j] = slice(taken, taken + rows.shape[1])
            taken += rows.shape[1]
            self._rows[j] = None
        self._group = torch.cat(parts, dim=1)
        self._forget_folded()

    def _fold_new_blocks(self) -> None:
        """Fold the blocks that closed since the last call, or all when a group begins."""
        index = self._index
        first = index.loose
        if self._seen < first:  # all that were folded are dropped, or on shelves now
            self._forget_folded()
        if self._seen == len(index):
            return
        if self._kernels:
            self._folded.append(self._folded_by_kernel(self._group, self._seen))
            self._seen = len(index)
            return
        new = index.rows.part(self._seen - first, len(index) - first)
        kv_heads, n_rows, _ = self._group.shape
        at_once = self._tile_bytes or (_TILE_BYTES_GPU if new.keys.is_cuda else _TILE_BYTES)
        max_rows = at_once // (4 * kv_heads * n_rows)
        fold = self._scorer.fold
        folded = [fold(self._product(tile.keys), tile) for tile in new.tiles(max_rows)]
        self._folded.append(torch.cat(folded, dim=2))
        self._seen = len(index)

    def _forget_folded(self) -> None:
        kv_heads, n_rows, _ = self._group.shape
        self._folded = [self._group.new_empty(kv_heads, n_rows, 0, dtype=torch.float32)]
        self._first = self._seen = self._index.loose

    def _product(self, keys: Tensor) -> Tensor:
        """Logits ``[H_kv, R, M]`` float32 of the group's rows against keys ``[H_kv, M, D']``."""
        if self._group.shape[1] < _WIDE:
            return (self._group @ keys.mT).float()
        return (keys @ self._group.mT).float().mT
