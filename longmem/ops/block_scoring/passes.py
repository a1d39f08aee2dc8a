"""The passes of a look-up as launches: fold, tally, select."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from longmem.ops.block_scoring.estimating import estimate_kernel
from longmem.ops.block_scoring.kernel import fold_kernel, tally_kernel
from longmem.ops.block_scoring.select import select_kernel
from longmem.ops.block_scoring.table import Bounds
from longmem.ops.kernels import Launch, launch, launch_of
from longmem.ops.scratch import Scratch

_OP = "block_scoring"
_FEW, _LONG_RUN = 16, 16
WIDTHS = (1024, 8192)
"""Columns one program may choose from: few sizes, so that few forms are compiled while an index grows."""
LEAST_K = 16
"""Numbers of blocks to choose up to this one share a compiled form: while an index is young, k grows."""
_ALIGNED = 16
"""Lines are so many values long, or a multiple: all loads are then of 16 bytes."""


class Folded(NamedTuple):
    """What `fold` found, all float32.

    Args:
        values: ``[S, H_kv, R, columns]`` log of the sum of exp(logit) over each block's rows.
        tops, sums: ``[S, H_kv, R, tiles]`` of every tile of blocks, the largest value, and the sum of
            exp(value - largest).
    """

    values: Tensor
    tops: Tensor
    sums: Tensor


def fold(queries: Tensor, table: Tensor, bounds: Bounds, scaling: float, into: Scratch) -> Folded:
    """Read the rows of S indexes once; columns behind a session's candidates are left as they were.

    Args:
        queries: ``[S, H_kv, R, D]`` with unit stride in D, of the keys' dtype.
        table: ``[S, 6]`` of `IndexRow`.
        bounds: of the indexes.
        scaling: factor of the logits.
        into: where the result lies.
    """
    sessions, heads, n_rows, dim = queries.shape
    how, run, tile = fold_launch(n_rows, dim, bounds.rows)
    columns, tiles = _up(bounds.blocks), _up(-(-bounds.blocks // tile))

    def take(name: str, width: int) -> Tensor:
        shape = (sessions, heads, n_rows, width)
        return into.take(name, shape, torch.float32, queries.device)

    folded = Folded(take("folded", columns), take("tops", tiles), take("sums", tiles))
    row_tiles = -(-n_rows // how.blocks["ROWS"])
    launch(
        fold_kernel, (-(-columns // tile) * row_tiles, heads, sessions), queries.device, how,
        queries, table, *folded, *queries.stride()[:3], n_rows, columns, tiles, scaling,
        D=dim, D_PAD=pad(dim),
        TILE=tile, RUN=run, MANY=bounds.rows > run,
    )  # fmt: skip
    return folded


def tally(folded: Folded, table: Tensor, tile: int, into: Scratch) -> tuple[Tensor, Tensor]:
    """Votes ``[S, H_kv, columns]`` and their sum over KV heads ``[S, columns]``, float32.

    Args:
        folded: what to count.
        table: ``[S, 6]`` of `IndexRow`.
        tile: blocks of a tile, as `tile_of` gives it.
        into: where the result lies.
    """
    sessions, heads, n_rows, columns = folded.values.shape
    device = folded.values.device
    scores = into.take("scores", (sessions, heads, columns), torch.float32, device)
    totals = into.take("totals", (sessions, columns), torch.float32, device)
    how, groups = tally_launch(n_rows)
    launch(
        tally_kernel, (-(-columns // how.blocks["TILE"]), sessions), device, how,
        *folded, table, scores, totals, heads, n_rows, columns, folded.tops.shape[3],
        FOLDED=tile, **groups,
    )  # fmt: skip
    return scores, totals


def tile_of(n_rows: int, dim: int, most_rows: int) -> int:
    """Blocks of a tile of `fold`, for R query rows and blocks of at most so many rows."""
    return fold_launch(n_rows, dim, most_rows)[2]


def select(
    scores: Tensor, k: int, into: Scratch, *, table: Tensor | None = None, per_session: int = 1
) -> Tensor:
    """The `k` best of every line ``[lines, columns]`` float32: ids ``[lines, k]`` int32, ascending, the
    older of equals, -1 where a line has fewer.

    Args:
        scores: one line after the other.
        k: how many.
        into: where the result lies.
        table: ``[S, 6]`` of `IndexRow`, if the candidates of a line are those of its session, and ids
            their numbers; None: all columns are.
        per_session: lines of a session.
    """
    names: Tensor | None = None
    step = 0
    while True:
        lines, columns = scores.shape
        wide = min((w for w in WIDTHS if w >= columns), default=max(WIDTHS[-1], 2 * pad(k)))
        parts = max(-(-columns // wide), 1)
        ids = into.take(f"ids{step}", (lines, parts, k), torch.int32, scores.device)
        best = ids.view(torch.float32)
        if parts > 1:
            best = into.take(f"best{step}", (lines, parts, k), torch.float32, scores.device)
        n_of = "names" if names is not None else "all" if table is None else "table"
        launch(
            select_kernel, (lines, parts), scores.device, select_launch(wide),
            scores, ids if table is None else table, ids if names is None else names,
            ids, best, columns, per_session, columns, k,
            N_OF=n_of, KEEP=parts > 1, WIDE=wide, K_PAD=max(LEAST_K, pad(k)),
        )  # fmt: skip
        if parts == 1:
            return ids[:, 0]
        scores, names, step = best.flatten(1), ids.flatten(1), step + 1


def estimate(
    queries: Tensor, summaries: Tensor, counts: Tensor, scaling: float, peak: float
) -> tuple[Tensor, Tensor]:
    """Largest logits and log masses to expect of groups, ``[H_kv, R, G]`` float32 each; arguments as of
    the op's `estimate`."""
    heads, n_rows, dim = queries.shape
    groups = summaries.shape[2]
    found = summaries.new_empty(2, heads, n_rows, groups)
    how = launch_of(_OP, "estimate", dim)
    grid = -(-n_rows // how.blocks["ROWS"]), -(-groups // how.blocks["GROUPS"]), heads
    launch(
        estimate_kernel, grid, queries.device, how,
        queries, summaries, counts, found[0], found[1], *queries.stride()[:2],
        *summaries.stride()[:2], n_rows, groups, scaling, peak, D=dim,
    )  # fmt: skip
    return found[0], found[1]


def pad(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def _up(n: int) -> int:
    return max(-(-n // _ALIGNED), 1) * _ALIGNED


def fold_launch(n_rows: int, dim: int, most_rows: int) -> tuple[Launch, int, int]:
    """How to launch `fold`, rows of a block it reads at once, and blocks of a program."""
    how = launch_of(_OP, "fold" if n_rows <= _FEW else "fold_many", dim)
    run = min(pad(most_rows), _LONG_RUN)
    rest = {"ROWS": how.blocks["ROWS"]}
    return Launch(rest, how.num_warps, how.num_stages), run, how.blocks["KEYS"] // run


def tally_launch(n_rows: int) -> tuple[Launch, dict[str, int]]:
    """How to launch `tally`, and how many heads and query rows it takes at once."""
    how = launch_of(_OP, "tally", 256)
    blocks = dict(how.blocks)
    lines = blocks.pop("LINES")
    rows = min(pad(n_rows), lines)
    return Launch(blocks, how.num_warps, how.num_stages), {"HEADS": lines // rows, "ROWS": rows}


def select_launch(wide: int) -> Launch:
    """How to launch `select` for so many columns."""
    return launch_of(_OP, "select", min(wide, WIDTHS[-1]))
