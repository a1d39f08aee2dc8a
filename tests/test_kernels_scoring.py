"""Block scoring by kernels against its naive twins, and look-ups that go through it."""

from __future__ import annotations

import pytest
import torch
from conftest import needs_kernels
from pretend_device import on_host, pretend
from tiny import VOCAB, attached, new_memory, read_in_passes, tokens
from transformers import LlamaConfig, LlamaForCausalLM

from longmem.config import MemoryConfig
from longmem.memory.index import BlockIndex
from longmem.memory.lookup import Lookup
from longmem.memory.lookups import PassLookups
from longmem.memory.shelf_plan import Grid
from longmem.memory.spec import LayerSpec
from longmem.ops.block_scoring import (
    Bounds,
    IndexRow,
    choose,
    choose_naive,
    estimate,
    fold,
    fold_blocks,
    fold_naive,
    score,
    score_and_choose,
    score_naive,
    table_of,
)
from longmem.ops.scratch import Scratch
from longmem.retrieval import PEAK, get_scorer
from longmem.retrieval import estimate as estimate_in_torch

pytestmark = needs_kernels
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.bfloat16, torch.float16]
SCORE = 1e-5
"""Of votes, which are at most R: products of 16-bit values are exact in float32, sums are taken in
another order, and exp2 is good to a few units in the last place."""
LOG_MASS = 2e-5
"""Of log masses of up to some 50, whose own last place is 4e-6."""
NEAR = 1e-5
"""Share of the votes by which two blocks must differ for their order to be sure."""
SCALING = 0.15


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    monkeypatch.setenv("LONGMEM_KERNELS", "interpret")


class Poisoned(Scratch):
    """Memory that is full of NaN, or of numbers no block has."""

    def take(self, name, shape, dtype, device):
        taken = super().take(name, shape, dtype, device)
        return taken.fill_(torch.nan if dtype.is_floating_point else -77)


def rows(n_blocks, most, dim, dtype, heads=2, seed=0, room=7, before=0):
    """Keys ``[H_kv, M, D]`` of ragged blocks, NaN around them, and where blocks start from 0."""
    g = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, most + 1, (n_blocks,), generator=g)
    starts = torch.cat((counts.new_zeros(1), counts.cumsum(0))).int()
    m = int(starts[-1])
    keys = torch.full((heads, before + m + room, dim), torch.nan)
    keys[:, before : before + m] = torch.randn(heads, m, dim, generator=g)
    return keys.to(dtype).to(DEVICE)[:, before : before + m], starts.to(DEVICE)


def queries(n_rows, dim, dtype, heads=2, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(heads, n_rows, dim, generator=g).to(dtype).to(DEVICE)


def assert_best(ids, scores, k):
    """`ids` are the `k` best of scores ``[N]``, but for those that are as good as equal."""
    ids = [i for i in ids.tolist() if i >= 0]
    assert ids == sorted(set(ids)) and len(ids) == min(k, len(scores))
    others = torch.ones(len(scores), dtype=torch.bool)
    others[ids] = False
    if others.any():
        assert scores[ids].min() >= scores[others].max() - NEAR * scores.sum()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n_blocks", "n_rows", "dim", "most"),
    [
        (1, 1, 64, 1),
        (63, 4, 64, 4),
        (64, 8, 80, 4),
        (65, 1, 96, 3),
        (1000, 4, 64, 4),
        (65, 65, 64, 4),
        (13, 4, 128, 40),
        (65, 3, 256, 4),
    ],
)
def test_scores_and_log_masses_are_those_of_the_naive_twin(n_blocks, n_rows, dim, most, dtype):
    heads = 1 if n_blocks == 1000 else 2
    q = queries(n_rows, dim, dtype, heads)
    keys, starts = rows(n_blocks, most, dim, dtype, heads)
    expected = score_naive(q, keys, starts, SCALING)
    got = score(q, keys, starts, scaling=SCALING, most_rows=most)
    assert got.shape == (heads, n_blocks)
    assert (got - expected).abs().max() <= SCORE * n_rows
    folded = fold(q, keys, starts, scaling=SCALING, most_rows=most)
    assert (folded - fold_naive(q, keys, starts, SCALING)).abs().max() <= LOG_MASS


def test_a_block_may_have_more_rows_than_was_said():
    q, (keys, starts) = queries(4, 64, torch.bfloat16), rows(20, 50, 64, torch.bfloat16)
    expected = score_naive(q, keys, starts, SCALING)
    got = score(q, keys, starts, scaling=SCALING, most_rows=17)
    assert (got - expected).abs().max() <= SCORE * 4


def test_a_head_that_is_sure_leaves_nothing_and_no_nan_to_others():
    keys, starts = rows(40, 1, 64, torch.bfloat16)
    q = keys[:, 7:8] * 60
    got = score(q, keys, starts, most_rows=1)
    assert got[:, 7].tolist() == [1, 1]
    assert got.sum() == 2


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 1000, 1025, 9000])
@pytest.mark.parametrize("k", [1, 5, 16])
def test_the_best_are_chosen_and_of_equals_the_older(n, k):
    g = torch.Generator().manual_seed(n + k)
    few_values = torch.randint(-4, 5, (2, n), generator=g).float().to(DEVICE)
    few_values[0, few_values[0] == 0] = -0.0
    for scores in (torch.randn(2, n, generator=g).to(DEVICE), few_values):
        assert torch.equal(choose(scores, k, by_head=True), choose_naive(scores + 0.0, k))
        assert torch.equal(choose(scores[0], k), choose_naive(scores[0] + 0.0, k))
    total = few_values.sum(0)
    assert torch.equal(choose(few_values, k), choose_naive(total, k))


def test_nothing_is_chosen_of_nothing():
    assert choose(torch.zeros(2, 0, device=DEVICE), 4, by_head=True).shape == (2, 0)


def sessions(dtype, dim=64):
    """The indexes of three sessions as rows of a table: some blocks dropped, few or no candidates."""
    made = []
    for seed, (n, held, first, before) in enumerate([(70, 3, 3, 0), (37, 10, 15, 5), (8, 0, 6, 0)]):
        keys, starts = rows(n, 4, dim, dtype, seed=seed, before=before)
        whole = keys._base if keys._base is not None else keys
        absolute = (starts + before).contiguous()
        row = IndexRow(whole.data_ptr(), absolute.data_ptr(), held, first, held + n, whole.shape[1])
        kept = starts[first - held :]
        made.append((row, keys[:, int(kept[0]) :], kept - kept[0], (whole, absolute)))
    return made


@pytest.mark.parametrize("by_head", [False, True])
@pytest.mark.parametrize("group", [1, 4, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sessions_together_are_those_alone_bit_for_bit_and_those_of_the_twin(dtype, group, by_head):
    made, k = sessions(dtype), 5
    q = torch.stack([queries(group, 64, dtype, seed=i) for i in range(3)])
    q = q.reshape(3, 2 * group, 64).unflatten(1, (2, group))  # as a decode step has them
    table = table_of([row for row, *_ in made], DEVICE)
    bounds, scratch = Bounds(150, 4), Poisoned()
    settings = {"k": k, "scaling": SCALING, "by_head": by_head}
    got = score_and_choose(q, table, bounds, scratch=scratch, **settings)
    for i, (row, keys, starts, _) in enumerate(made):
        n = row.stop - row.first
        expected = score_naive(q[i], keys, starts, SCALING)
        assert (got.scores[i, :, :n] - expected).abs().max() <= SCORE * group
        assert (got.totals[i, :n] - expected.sum(0)).abs().max() <= SCORE * group * 2
        lines = got.scores[i, :, :n] if by_head else got.totals[i : i + 1, :n]
        for ids, line in zip(got.ids[i].view(len(lines), k), lines, strict=True):
            assert_best(torch.where(ids < 0, ids, ids - row.first).cpu(), line.cpu(), k)
            assert (ids >= 0).sum() == min(k, n)
        alone = score_and_choose(
            q[i : i + 1], table[i : i + 1].clone(), Bounds(n, 4), scratch=Poisoned(), **settings
        )
        assert torch.equal(alone.ids[0], got.ids[i])
        assert torch.equal(alone.scores[0, :, :n], got.scores[i, :, :n])
        assert torch.equal(alone.totals[0, :n], got.totals[i, :n])


def test_blocks_that_closed_later_are_folded_alone():
    (row, keys, starts, _), *_ = sessions(torch.bfloat16)
    q = queries(20, 64, torch.bfloat16)
    late = fold_blocks(q, row._replace(first=60), scaling=SCALING, most_rows=4)
    expected = fold_naive(q, keys, starts, SCALING)[..., 60 - row.first :]
    assert late.shape == expected.shape
    assert (late - expected).abs().max() <= LOG_MASS


def test_a_dtype_that_kernels_do_not_serve_is_computed_by_the_twin_or_refused():
    keys, starts = rows(9, 4, 64, torch.float32)
    q = queries(2, 64, torch.float32)
    assert torch.equal(score(q, keys, starts), score_naive(q, keys, starts))
    row = IndexRow(keys.data_ptr(), starts.data_ptr(), 0, 0, 9, keys.shape[1])
    with pytest.raises(ValueError, match="no kernels"):
        score_and_choose(q[None], table_of([row], DEVICE), Bounds(9, 4), k=1, scaling=1.0)


@pytest.mark.parametrize("dim", [64, 80])
def test_groups_are_estimated_as_in_torch(dim):
    g = torch.Generator().manual_seed(0)
    summaries = torch.randn(2, 2 * dim, 50, generator=g)
    summaries[:, dim:].abs_()
    summaries, counts = summaries.to(DEVICE), torch.randint(1, 65, (50,), generator=g).to(DEVICE)
    q = queries(21, dim, torch.bfloat16)
    got = estimate(q, summaries[..., 3:], counts[3:].float(), scaling=SCALING, peak=PEAK)
    expected = estimate_in_torch(q.float() * SCALING, summaries[..., 3:], counts[3:].float())
    for one, other in zip(got, expected, strict=True):
        assert (one - other).abs().max() <= LOG_MASS


HEADS, KV_HEADS, DIM = 8, 2, 64
GRID = Grid(above=0, shelf=10, group=6, probe=3, probe_reading=2)


def filled(dtype, grid, n=75):
    spec = LayerSpec(0, HEADS, KV_HEADS, DIM, None, None, SCALING, dtype, DEVICE)
    index, g = BlockIndex(spec, 4, grid=grid), torch.Generator().manual_seed(5)
    for size in torch.randint(1, 9, (n,), generator=g).tolist():
        raw = torch.randn(KV_HEADS, size, DIM, generator=g).to(torch.bfloat16)
        index.add(raw.to(DEVICE, dtype), torch.rand(KV_HEADS, size, generator=g).to(DEVICE))
    return index


def passes(index):
    """Scores of look-ups between which an index changes in every way it can."""
    lookups, g = PassLookups(get_scorer("soft_vote"), index), torch.Generator().manual_seed(6)
    dtype = index.spec.dtype
    asked = [torch.randn(HEADS, 1, DIM, generator=g).bfloat16().to(DEVICE, dtype) for _ in range(6)]

    def alone(q):
        lookups.begin([q])
        return lookups.scores(0).clone()

    yield alone(asked[0])
    index.drop_front(7)
    yield alone(asked[1])
    lookups.begin(asked)
    for i in range(len(asked)):
        yield lookups.scores(i).clone()
        index.add(
            torch.full((KV_HEADS, 3, DIM), i / 8, dtype=dtype, device=DEVICE), asked[0][:2, 0]
        )
        if i == 2:
            index.drop_front(12)
    index.truncate(60)
    yield alone(asked[2])
    index.drop_front(50)
    index.release(60)
    yield alone(asked[3])
    keys, counts = index.export(52)
    index.load(keys, counts, 52)
    yield alone(asked[4])


@pytest.mark.parametrize("grid", [None, GRID], ids=["one level", "two levels"])
def test_look_ups_by_kernels_are_those_in_float32_of_the_same_values(grid):
    by_kernel = passes(filled(torch.bfloat16, grid))
    in_float32 = passes(filled(torch.float32, grid))
    for got, expected in zip(by_kernel, in_float32, strict=True):
        assert got.shape == expected.shape
        assert (got - expected).abs().max() <= SCORE * HEADS // KV_HEADS + 2e-5


@pytest.mark.parametrize("by_head", [False, True])
@pytest.mark.parametrize("grid", [None, GRID], ids=["one level", "two levels"])
def test_the_best_of_a_pass_are_numbered_as_in_the_stream_and_ranked_if_asked(grid, by_head):
    index = filled(torch.bfloat16, grid)
    index.drop_front(7)
    lookups, q = PassLookups(get_scorer("soft_vote"), index), queries(2, DIM, torch.bfloat16, HEADS)
    for spans, i in (([q[:, :1]], 0), ([q[:, :1], q[:, 1:]], 1)):
        lookups.begin(spans)
        for before in range(i):
            lookups.scores(before)
        ids, totals = lookups.best(i, 6, by_head=by_head, ranked=True)
        lookups.begin(spans[i:])
        scores = lookups.scores(0)
        assert torch.allclose(totals, scores.sum(0), atol=SCORE * HEADS)
        lines = scores if by_head else scores.sum(0)[None]
        for own, line in zip(ids.long() - 7, lines, strict=True):
            ranks = line[own]
            assert (ranks.diff() <= NEAR).all()
            assert_best(own.sort().values.cpu(), line.cpu(), 6)


@pytest.fixture(scope="module")
def routed():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=256,
        initializer_range=0.4,
    )  # fmt: skip
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager").eval()
    return attached(model.to(DEVICE, torch.bfloat16))


def test_a_session_looks_up_what_the_naive_twin_would(routed, monkeypatch):
    config = MemoryConfig(
        n_init=4, n_local=16, block_size=4, topk=3, repr_topk=2, lookup_span=8, contiguity=1
    )
    plain, seen = Lookup.choose, []

    def choose_and_compare(lookup, i, q_far):
        chosen, totals = plain(lookup, i, q_far)
        q = get_scorer("soft_vote").rows(q_far, 2)
        found = lookup.index.rows
        expected = score_naive(q, found.keys, found.starts, found.scaling).sum(0)
        assert (totals - expected).abs().max() <= SCORE * 4
        best = choose_naive(expected, 3) + lookup.index.first
        missed = set(best.tolist()) - set(chosen[0])
        next_best = expected.sort(descending=True).values[:4].min()
        assert all(expected[b - lookup.index.first] - next_best <= NEAR * 4 for b in missed)
        assert len(chosen[0]) == min(3 + 1, len(expected))
        seen.append(len(expected))
        return chosen, totals

    monkeypatch.setattr(Lookup, "choose", choose_and_compare)
    memory = new_memory(routed[1], config)
    read_in_passes(routed[0], memory, tokens(56), span=8, spans_per_pass=2)
    read_in_passes(routed[0], memory, tokens(2, seed=2), span=1, spans_per_pass=1)
    assert len(seen) > 5 and max(seen) > 8


@pytest.mark.parametrize(
    ("scorer", "grid"),
    [("soft_vote", None), ("soft_vote", GRID), ("representative", None), ("bounds", None),
     ("sub_block", None)],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_device_nothing_waits_until_the_choice_is_brought(dtype, scorer, grid, monkeypatch):
    monkeypatch.setenv("LONGMEM_KERNELS", "auto")
    found = []
    with pretend() as world:
        for device in (torch.device("cuda:0"), torch.device("cpu")):
            g = torch.Generator().manual_seed(5)
            spec = LayerSpec(0, HEADS, KV_HEADS, DIM, None, None, SCALING, dtype, device)
            asked = get_scorer(scorer)
            index = BlockIndex(spec, 4, asked.form, grid)
            for size in torch.randint(1, 9, (40,), generator=g).tolist():
                raw = torch.randn(KV_HEADS, size, DIM, generator=g).to(dtype)
                index.add(raw.to(device), torch.rand(KV_HEADS, size, generator=g).to(device))
            index.drop_front(3)
            q = [torch.randn(HEADS, 1, DIM, generator=g).to(dtype).to(device) for _ in range(2)]
            lookups = PassLookups(asked, index)
            with world.no_waits():
                lookups.begin(q[:1])
                best = [lookups.best(0, 4)]
                lookups.begin(q)
                best += [lookups.best(i, 4) for i in range(2)]
            found.append([(on_host(ids).sort().values, on_host(total)) for ids, total in best])
    for (ids, total), (their_ids, their_total) in zip(*found, strict=True):
        close = 1e-5 if dtype == torch.float32 else 3e-2
        assert torch.allclose(total, their_total, atol=close, rtol=close)
        assert dtype != torch.float32 or torch.equal(ids.long(), their_ids.long())
