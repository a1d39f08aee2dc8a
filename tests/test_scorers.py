"""Block scorers against the loops that define them."""

from __future__ import annotations

import math

import pytest
import torch

from longmem import ConfigError, MemoryConfig
from longmem.retrieval import (
    BlockScorer,
    Bounds,
    IndexRows,
    Representative,
    SoftVote,
    SubBlock,
    get_scorer,
    register,
)

COUNTS = [3, 1, 4, 2]
SCALING = 0.3
GROUP = 2  # query heads per KV head


def rows_of(counts, width=8):
    starts = torch.tensor([0, *counts]).cumsum(0)
    return IndexRows(torch.randn(2, sum(counts), width), starts, SCALING)


@pytest.fixture
def blocks():
    torch.manual_seed(0)
    return rows_of(COUNTS)


def each_row(blocks):
    """(row, block it belongs to) of all rows."""
    starts = blocks.starts.tolist()
    for block in range(blocks.n_blocks):
        for row in range(starts[block], starts[block + 1]):
            yield row, block


def logits(q, blocks, head, t):
    """The logits of one query against all rows, one by one."""
    return torch.stack([q[head, t] @ key for key in blocks.keys[head // GROUP]]) * SCALING


@pytest.mark.parametrize("n_query", [1, 3, 4])
def test_soft_vote_sums_one_softmax_per_head_and_query(blocks, n_query):
    q = torch.randn(4, n_query, 8)
    expected = torch.zeros(2, 4)
    for head in range(4):
        for t in range(n_query):
            votes = torch.softmax(logits(q, blocks, head, t), 0)
            for row, block in each_row(blocks):
                expected[head // GROUP, block] += votes[row]
    scores = SoftVote(voters=4).score(q, blocks)
    torch.testing.assert_close(scores, expected)
    assert SoftVote().shares(scores.sum(0)).sum().item() == pytest.approx(1)


def test_soft_vote_averages_the_queries_of_a_long_span_in_groups(blocks):
    q = torch.randn(4, 10, 8)
    groups = [q[:, 0:3], q[:, 3:6], q[:, 6:8], q[:, 8:10]]
    pooled = torch.stack([g.mean(1) for g in groups], 1)
    vote = SoftVote(voters=4)
    torch.testing.assert_close(vote.score(q, blocks), vote.score(pooled, blocks))


def test_soft_vote_gives_nothing_and_no_nan_to_blocks_far_below_the_best(blocks):
    q = torch.zeros(4, 1, 8)
    q[..., 0] = 1000 / SCALING
    blocks.keys[:, :, 0] = -1.0
    blocks.keys[:, 4:8, 0] = 1.0  # block 2
    assert SoftVote().score(q, blocks).tolist() == [[0, 0, GROUP, 0]] * 2


def test_representative_scores_by_the_mean_query_and_averages_over_a_blocks_keys(blocks):
    q = torch.randn(4, 5, 8)
    mean = q.mean(1, keepdim=True)
    expected = torch.zeros(2, 4)
    for head in range(4):
        for row, block in each_row(blocks):
            expected[head // GROUP, block] += logits(mean, blocks, head, 0)[row] / COUNTS[block]
    torch.testing.assert_close(Representative().score(q, blocks), expected)


def test_bounds_sums_over_channels_the_larger_product_with_the_blocks_extremes():
    torch.manual_seed(0)
    keys = [torch.randn(2, n, 8) for n in COUNTS]
    top, low = (torch.stack([f(k, 1) for k in keys], 1) for f in (torch.amax, torch.amin))
    blocks = IndexRows(torch.cat((top, low), 2), torch.arange(5), SCALING)
    q = torch.randn(4, 3, 8)
    mean = q.mean(1)
    expected = torch.zeros(2, 4)
    for head in range(4):
        for block in range(4):
            kv = head // GROUP
            products = mean[head] * top[kv, block], mean[head] * low[kv, block]
            expected[kv, block] += torch.maximum(*products).sum() * SCALING
    scores = Bounds().score(q, blocks)
    torch.testing.assert_close(scores, expected)
    for block in range(4):  # no key of a block has a larger logit, and all heads together neither
        real = (mean.view(2, GROUP, 8) @ keys[block].mT * SCALING).sum(1).amax(-1)
        assert (scores[:, block] >= real - 1e-5).all()


def test_sub_block_takes_the_best_sub_block_per_head_before_heads_vote(blocks):
    q = torch.randn(4, 3, 8)
    mean = q.mean(1, keepdim=True)
    expected = torch.zeros(2, 4)
    for head in range(4):
        best = torch.full((4,), -math.inf)
        for row, block in each_row(blocks):
            best[block] = torch.maximum(best[block], logits(mean, blocks, head, 0)[row])
        expected[head // GROUP] += torch.softmax(best, 0)
    scores = SubBlock().score(q, blocks)
    torch.testing.assert_close(scores, expected)
    assert SubBlock().shares(scores.sum(0)).sum().item() == pytest.approx(1)


@pytest.mark.parametrize("name", ["soft_vote", "representative", "bounds", "sub_block"])
@pytest.mark.parametrize("outer", [False, True])
def test_folding_tiles_of_whole_blocks_equals_folding_all_at_once(name, outer):
    torch.manual_seed(1)
    scorer = get_scorer(name)
    counts = [1] * 90 if scorer.form == "bounds" else torch.randint(1, 40, (90,)).tolist()
    blocks = rows_of(counts, 16 if scorer.form == "bounds" else 8)
    rows = scorer.rows(torch.randn(4, 3, 8), 2)

    def folded(part):
        logits = (part.keys @ rows.mT).mT if outer else rows @ part.keys.mT
        return scorer.fold(logits, part)

    parts = list(blocks.tiles(150))
    assert len(parts) > (0 if scorer.form == "bounds" else 5)
    assert all(part.keys.shape[1] <= 150 for part in parts)
    assert sum(part.n_blocks for part in parts) == 90
    together = torch.cat([folded(part) for part in parts], 2)
    torch.testing.assert_close(together, folded(blocks), atol=1e-5, rtol=1e-5)


def test_a_tile_smaller_than_a_block_holds_one_block(blocks):
    assert [part.n_blocks for part in blocks.tiles(1)] == [1, 1, 1, 1]
    assert [part.keys.shape[1] for part in blocks.tiles(1)] == COUNTS


def test_a_scorer_of_ones_own_is_found_by_its_name(blocks):
    class Newest(BlockScorer):
        name = "newest"

        def rows(self, q, kv_heads):
            return q[:kv_heads, :1]

        def fold(self, logits, blocks):
            return blocks.max_by_block(logits)

        def tally(self, folded):
            return torch.arange(folded.shape[2]).expand(folded.shape[0], -1)

    register(Newest())
    found = get_scorer(MemoryConfig(scorer="newest").scorer)
    assert found.score(torch.randn(4, 1, 8), blocks).argmax(1).tolist() == [3, 3]
    with pytest.raises(ConfigError, match="newest"):
        get_scorer("nobody")
