"""Surprise boundaries against the paper's formulas, however the stream is cut."""

from __future__ import annotations

import statistics

import pytest
import torch

from longmem.memory.refinement import best_split, similarity, split_scores
from longmem.memory.surprise import Edge, SurpriseBoundaries

METRICS = ["modularity", "conductance"]
SETTINGS = {"gamma": 1.0, "window": 8, "min_block": 3, "block_size": 16}
START = 4


def stream(n=300, seed=0):
    """Surprises, turn starts and keys of a stream whose keys change direction now and then."""
    g = torch.Generator().manual_seed(seed)
    surprises = torch.rand(n, generator=g) + 3 * (torch.rand(n, generator=g) > 0.9)
    turns = sorted(set(torch.randint(0, n, (12,), generator=g).tolist()))
    topics = torch.randn(n // 9 + 1, 6, generator=g).repeat_interleave(9, 0)[:n]
    return surprises, turns, topics + 0.3 * torch.randn(n, 6, generator=g)


def edges_of(surprises, turns, keys, sizes, refine="none", **changes):
    """All edges when the stream is fed in passes of these sizes, the last one repeated."""
    boundaries = SurpriseBoundaries(START, refine=refine, **{**SETTINGS, **changes})
    edges, at = [], 0
    while at < len(surprises):
        n = sizes[min(len(edges), len(sizes) - 1)] if sizes else len(surprises)
        part = surprises[at : at + n]
        inside = [t for t in turns if at <= t < at + n]
        edges += boundaries.read(at, part, inside, lambda start, stop: keys[start:stop])
        at += n
    return edges


def naive_edges(surprises, turns, gamma, window, min_block, block_size):
    """Equation 1 and the rules on turns and sizes, without refinement."""
    counted, edges = [], [START]
    for t, surprise in enumerate(surprises.tolist()):
        recent, length = counted[-window:], t - edges[-1]
        high = len(recent) == window and surprise > statistics.fmean(recent) + (
            gamma * statistics.pstdev(recent)
        )
        if length >= min_block and (high or t in turns or length >= block_size):
            edges.append(t)
        if t not in turns:
            counted.append(surprise)
    return edges[1:]


@pytest.mark.parametrize("changes", [{}, {"gamma": 0.0}, {"min_block": 1}, {"gamma": 50.0}])
def test_edges_are_those_of_equation_1_turns_and_block_sizes(changes):
    surprises, turns, keys = stream()
    edges = edges_of(surprises, turns, keys, [], **changes)
    assert [e.position for e in edges] == naive_edges(surprises, turns, **{**SETTINGS, **changes})
    assert [e.known_at for e in edges] == [e.position + 1 for e in edges]
    assert len(edges) > 15


def test_a_surprising_token_starts_a_block_and_the_first_of_a_turn_is_not_counted():
    flat = torch.tensor([1.0, 1.1] * 20)
    flat[25] = 5.0
    flat[30] = float("nan")  # the first token of a turn
    edges = edges_of(flat, [30], None, [], gamma=2.0)
    assert [e.position for e in edges] == [20, 25, 30]


@pytest.mark.parametrize("refine", ["none", *METRICS])
def test_edges_and_when_they_are_known_do_not_depend_on_how_the_stream_is_cut(refine):
    surprises, turns, keys = stream()
    whole = edges_of(surprises, turns, keys, [], refine)
    assert len(whole) > 15
    assert edges_of(surprises, turns, keys, [1], refine) == whole
    assert edges_of(surprises, turns, keys, [7, 1, 30, 2, 64, 5], refine) == whole


@pytest.mark.parametrize("refine", METRICS)
def test_refined_blocks_keep_their_sizes_and_are_known_in_time(refine):
    surprises, turns, keys = stream(seed=3)
    edges = edges_of(surprises, turns, keys, [], refine)
    plain = edges_of(surprises, turns, keys, [])
    assert [e.position for e in edges] != [e.position for e in plain]
    last = START
    for edge in edges:
        assert SETTINGS["min_block"] <= edge.position - last <= SETTINGS["block_size"]
        assert edge.position < edge.known_at <= edge.position + SETTINGS["block_size"] + 1
        last = edge.position
    turn_edges = {e.position for e in plain} & set(turns)
    assert turn_edges <= {e.position for e in edges}
    assert len(turn_edges) > 3


def naive_modularity(a, communities):
    """Equation 3, pair by pair."""
    two_m = sum(float(x) for row in a for x in row)
    degree = [sum(float(x) for x in row) for row in a]
    pairs = ((i, j) for c in communities for i in c for j in c)
    total = sum(float(a[i][j]) - degree[i] * degree[j] / two_m for i, j in pairs)
    return total / (2 * two_m)


def naive_conductance(a, communities):
    """Equation 4, pair by pair."""
    s, rest = communities
    cut = sum(float(a[i][j]) for i in s for j in rest)
    volumes = [sum(float(a[i][j]) for i in c for j in c) for c in communities]
    return cut / min(volumes)


def test_split_scores_are_the_papers_formulas():
    torch.manual_seed(0)
    a = similarity(torch.rand(11, 5))
    for t in range(1, 11):
        communities = [range(t), range(t, 11)]
        q = float(split_scores(a, "modularity")[t - 1])
        assert q == pytest.approx(naive_modularity(a, communities), abs=1e-9)
        c = float(split_scores(a, "conductance")[t - 1])
        assert -c == pytest.approx(naive_conductance(a, communities), abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("edge", [3, 6, 9])
def test_the_best_split_of_two_groups_of_like_keys_is_between_them(metric, edge):
    a = torch.full((14, 14), 0.05, dtype=torch.float64)
    a[:edge, :edge] = a[edge:, edge:] = 1.0
    assert best_split(a, metric, 1, 12) == edge


@pytest.mark.parametrize("metric", METRICS)
def test_a_boundary_moves_back_to_where_the_keys_change(metric):
    n, change, spike, after = 40, 14, 18, 27
    keys = torch.zeros(n, 2)
    keys[:change, 0] = keys[change:, 1] = 1.0
    surprises = torch.tensor([1.0, 1.1] * (n // 2))
    surprises[[spike, after]] = 9.0
    edges = edges_of(surprises, [], keys, [1], metric, block_size=20, gamma=2.0)
    assert edges[0] == Edge(change, known_at=after + 1)


@pytest.mark.parametrize("metric", METRICS)
def test_keys_without_positive_similarity_leave_a_boundary_where_it_is(metric):
    assert best_split(torch.zeros(9, 9, dtype=torch.float64), metric, 2, 6) == 6


@pytest.mark.parametrize("refine", ["none", *METRICS])
def test_rewinding_and_loading_go_on_as_if_nothing_had_happened(refine):
    surprises, turns, keys = stream()
    whole = edges_of(surprises, turns, keys, [], refine)

    def reader(start, stop):
        return keys[start:stop]

    first = SurpriseBoundaries(START, refine=refine, **SETTINGS)
    early = first.read(0, surprises[:157], turns, reader)
    mark = first.mark()
    first.read(157, torch.rand(60), (), reader)
    first.rewind(mark)
    other = SurpriseBoundaries(START, refine=refine, **SETTINGS)
    other.load(first.export())
    for one in (first, other):
        assert early + one.read(157, surprises[157:], turns, reader) == whole
    assert first.position == 300
