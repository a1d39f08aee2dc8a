"""Block scorers against the loops that define them."""

from __future__ import annotations

import pytest
import torch

from longmem import ConfigError, MemoryConfig
from longmem.retrieval import Representative, Representatives, SoftVote, get_scorer, register

COUNTS = [3, 1, 4, 2]
SCALING = 0.3


@pytest.fixture
def blocks():
    torch.manual_seed(0)
    block = torch.repeat_interleave(torch.arange(4, dtype=torch.int32), torch.tensor(COUNTS))
    return Representatives(torch.randn(2, sum(COUNTS), 8), block, len(COUNTS), SCALING)


def logits(q, blocks, head, t):
    """The logits of one query against all representatives, one by one."""
    kv = head // (q.shape[0] // blocks.keys.shape[0])
    return torch.stack([q[head, t] @ key for key in blocks.keys[kv]]) * SCALING


@pytest.mark.parametrize("n_query", [1, 3, 4])
def test_soft_vote_sums_one_softmax_per_head_and_query(blocks, n_query):
    q = torch.randn(4, n_query, 8)
    expected = torch.zeros(4)
    for head in range(4):
        for t in range(n_query):
            votes = torch.softmax(logits(q, blocks, head, t), 0)
            for row, block in enumerate(blocks.block.tolist()):
                expected[block] += votes[row]
    scores = SoftVote(voters=4).score(q, blocks)
    torch.testing.assert_close(scores, expected)
    assert SoftVote().shares(scores).sum().item() == pytest.approx(1)


def test_soft_vote_averages_the_queries_of_a_long_span_in_groups(blocks):
    q = torch.randn(4, 10, 8)
    groups = [q[:, 0:3], q[:, 3:6], q[:, 6:8], q[:, 8:10]]
    pooled = torch.stack([g.mean(1) for g in groups], 1)
    vote = SoftVote(voters=4)
    torch.testing.assert_close(vote.score(q, blocks), vote.score(pooled, blocks))


def test_representative_scores_by_the_mean_query_and_averages_over_a_blocks_keys(blocks):
    q = torch.randn(4, 5, 8)
    mean = q.mean(1, keepdim=True)
    expected = torch.zeros(4)
    for head in range(4):
        for row, block in enumerate(blocks.block.tolist()):
            expected[block] += logits(mean, blocks, head, 0)[row] / COUNTS[block]
    torch.testing.assert_close(Representative().score(q, blocks), expected)


def test_a_scorer_of_ones_own_is_found_by_its_name(blocks):
    class Newest:
        name = "newest"

        def score(self, q, blocks):
            return torch.arange(blocks.n_blocks, dtype=torch.float32)

        def shares(self, scores):
            return scores / scores.sum()

    register(Newest())
    assert get_scorer(MemoryConfig(scorer="newest").scorer).score(None, blocks).argmax() == 3
    with pytest.raises(ConfigError, match="newest"):
        get_scorer("nobody")
