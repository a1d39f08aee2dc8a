"""Look-up while training: does a reply's query find the fact's turn, and which wrong turns come close?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

OTHER_TURNS, OTHER_TOKENS = 6, 6 * 64  # turns of other rows that a row looks up, and their tokens


class Found(NamedTuple):
    """What one layer's look-up gave.

    Args:
        loss: -log of the attention mass on the right turn, mean over heads, among all rows' turns.
        share: of the queries, how many give the right turn more than half of their mass.
        turns: [B, OTHER_TOKENS], flat tokens of the best wrong turns of other rows; -1 is padding.
    """

    loss: Tensor
    share: Tensor
    turns: Tensor


def find(q: Tensor, k: Tensor, batch: dict[str, Tensor]) -> Found:
    """Lets every query of the batch look among the turns of all rows, as in one long history.

    Args:
        q: [B, H, T, D], rotated at n_local. k: [B, H_kv, T, D], un-rotated.
    """
    b, heads, length, dim = q.shape
    chosen = q.transpose(1, 2).reshape(b * length, heads, dim)[batch["query"]]  # [Q, H, D]
    keys = (
        k.repeat_interleave(heads // k.shape[1], 1).transpose(1, 2).reshape(b * length, heads, dim)
    )
    scores = torch.einsum("qhd,khd->hqk", chosen, keys) * dim**-0.5
    line = batch["line"].reshape(-1)
    own = torch.arange(b).repeat_interleave(length)[None] == batch["query_row"][:, None]  # [Q, B T]
    earlier = line[None] < line[batch["query"]][:, None] - 1
    seen = torch.where(own, earlier, batch["query_generic"][:, None] == 0)
    shares = torch.where(seen[None], scores, -1e30).softmax(-1)
    right = own & (line[None] == batch["query_fact"][:, None])
    mass, weight = (shares * right[None]).sum(-1).mean(0), batch["query_weight"]
    with torch.no_grad():
        turns = _best_of_other_rows((shares.sum(0) * ~own) * weight[:, None], b, batch)
        share = ((mass > 0.5) * weight).sum() / weight.sum()
    return Found(-((mass + 1e-6).log() * weight).sum() / weight.sum(), share, turns)


def _best_of_other_rows(votes: Tensor, rows: int, batch: dict[str, Tensor]) -> Tensor:
    """votes [Q, B T] -> [B, OTHER_TOKENS], see `Found`."""
    by_row = votes.new_zeros(rows, votes.shape[1]).index_add(0, batch["query_row"], votes)
    size = batch["turn_length"]
    by_turn = votes.new_zeros(rows, len(size)).index_add(1, batch["turn"].reshape(-1), by_row)
    best = (by_turn * (size > 0)).topk(OTHER_TURNS, 1).indices  # [B, turns]
    offset = torch.arange(OTHER_TOKENS // OTHER_TURNS)
    tokens = batch["turn_start"][best][..., None] + offset
    return torch.where(offset < size[best][..., None], tokens, -1).reshape(rows, OTHER_TOKENS)
