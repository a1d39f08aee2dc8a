"""InfLLM as its paper writes it, token by token, against a full-attention layer of the engine."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longmem.config import MemoryConfig
from longmem.memory import AttentionCall, ForwardPass, LayerSpec, ReadSpan, SessionMemory
from longmem.ops.rotary import Rotary

HEADS, KV_HEADS, DIM = 4, 2, 8
SCALING = DIM**-0.5
FREQUENCIES = 100.0 ** -(torch.arange(0, DIM, 2, dtype=torch.float64) / DIM)  # base 100: few tokens
SIZES = [9, 4, 13, 7, 1, 1, 16, 5, 8, 11, 3, 14, 6, 10, 2, 12, 9, 1, 7, 15]  # 20 segments
SETTINGS = {"n_init": 4, "n_local": 16, "block_size": 6, "repr_topk": 2}


ANGLES = [distance * FREQUENCIES for distance in range(SETTINGS["n_local"] + 1)]
TURNS = [(angle.cos().float(), angle.sin().float()) for angle in ANGLES]


def turned(x: Tensor, distance: int) -> Tensor:
    """A vector ``[D]`` turned by RoPE over a distance; pairs are (i, i + D / 2)."""
    (a, b), (cos, sin) = x.chunk(2), TURNS[distance]
    return torch.cat((a * cos - b * sin, b * cos + a * sin))


class PaperInfLLM:
    """One layer of InfLLM (arXiv 2402.04617, section 3).

    The stream of past tokens falls into initial tokens I, evicted tokens E in blocks of
    `block_size`, and local tokens L. Each segment of the input is a look-up: it attends to
    ``I, topk blocks of E, L`` under one softmax. Tokens beyond L are all met at distance `n_local`.
    Tokens that left L but whose block has not wholly left it are attended, like L's.
    """

    def __init__(self, topk: int, repr_by: str) -> None:
        self.topk, self.repr_by = topk, repr_by
        self.keys: list[list[Tensor]] = [[] for _ in range(KV_HEADS)]  # of every token, un-rotated
        self.values: list[list[Tensor]] = [[] for _ in range(KV_HEADS)]
        self.significance: list[list[float]] = [[] for _ in range(KV_HEADS)]
        self.blocks: list[range] = []  # the tokens of each evicted block
        self.representatives: list[list[list[Tensor]]] = []  # per block and KV head
        self.chosen: set[int] = set()

    def read(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One segment: ``[H, T, D]`` of un-rotated ``q [H, T, D]``, ``k, v [H_kv, T, D]``."""
        self.evict()
        self.look_up(q)
        rows = []
        for t in range(q.shape[1]):
            for kv in range(KV_HEADS):
                self.keys[kv].append(k[kv, t])
                self.values[kv].append(v[kv, t])
                self.significance[kv].append(0.0)
            rows.append(torch.stack([self.attend(h, q[h, t]) for h in range(HEADS)]))
        return torch.stack(rows, dim=1)

    def evict(self) -> None:
        """Blocks whose tokens all left the local window become memory units."""
        read, size = len(self.keys[0]), SETTINGS["block_size"]
        start = self.blocks[-1].stop if self.blocks else SETTINGS["n_init"]
        while start + size <= read - SETTINGS["n_local"]:
            block = range(start, start + size)
            self.blocks.append(block)
            self.representatives.append([self.best_keys(kv, block) for kv in range(KV_HEADS)])
            start = block.stop

    def best_keys(self, kv: int, block: range) -> list[Tensor]:
        """Section 3.2: the tokens of a block with the highest representative scores."""
        ranked = sorted(block, key=lambda m: self.significance[kv][m], reverse=True)
        return [self.keys[kv][m] for m in ranked[: SETTINGS["repr_topk"]]]

    def look_up(self, q: Tensor) -> None:
        """Equation 2: the blocks most similar to the segment, over all its tokens and heads."""
        far = [[turned(query, SETTINGS["n_local"]) for query in head] for head in q]
        similarity = []
        for unit in self.representatives:
            products = [
                query @ key
                for h in range(HEADS)
                for query in far[h]
                for key in unit[h // (HEADS // KV_HEADS)]
            ]
            similarity.append(float(sum(products)))
        ranked = sorted(range(len(similarity)), key=lambda b: similarity[b], reverse=True)
        self.chosen = {m for b in ranked[: self.topk] for m in self.blocks[b]}

    def attend(self, head: int, q: Tensor) -> Tensor:
        """Attention of the newest token in one head; what its local tokens receive is noted."""
        kv = head // (HEADS // KV_HEADS)
        here, n_local = len(self.keys[kv]) - 1, SETTINGS["n_local"]
        evicted = self.blocks[-1].stop if self.blocks else SETTINGS["n_init"]
        seen, logits = [], []
        for m in range(here + 1):
            if m >= SETTINGS["n_init"] and m < evicted and m not in self.chosen:
                continue
            seen.append(m)
            logits.append(turned(q, min(here - m, n_local)) @ self.keys[kv][m] * SCALING)
        weights = torch.softmax(torch.stack(logits), 0)
        for m, logit, weight in zip(seen, logits, weights, strict=True):
            if here - m < n_local and self.repr_by == "attention":
                self.significance[kv][m] += float(weight)  # as the public code has it
            elif 0 < here - m < n_local:
                self.significance[kv][m] += float(logit)  # equation 1
        return sum(w * self.values[kv][m] for m, w in zip(seen, weights, strict=True))


def engine_memory(topk: int, repr_by: str) -> SessionMemory:
    rotary = Rotary(FREQUENCIES, "half")
    device = torch.device("cpu")
    spec = LayerSpec(0, HEADS, KV_HEADS, DIM, rotary, None, SCALING, torch.float32, device)
    config = MemoryConfig.preset("infllm", topk=topk, repr_by=repr_by, **SETTINGS)
    return SessionMemory([spec], config, config.n_init)


def engine_reads(memory: SessionMemory, sizes: list[int], q, k, v) -> Tensor:
    """One pass of some segments through the engine's layer; ``[H, T, D]``."""
    run = ForwardPass([(memory, memory.prepare([ReadSpan(n, n) for n in sizes]))])
    out = run.attend(0, q[None], k[None], v[None], AttentionCall(SCALING, None, None))
    run.finish()
    return out[0].transpose(0, 1)


@pytest.mark.parametrize("repr_by", ["attention", "logits"])
@pytest.mark.parametrize(("topk", "segments_per_pass"), [(2, 1), (3, 3)])
def test_a_layer_computes_what_the_paper_says(topk, repr_by, segments_per_pass):
    torch.manual_seed(0)
    paper, memory = PaperInfLLM(topk, repr_by), engine_memory(topk, repr_by)
    for first in range(0, len(SIZES), segments_per_pass):
        sizes = SIZES[first : first + segments_per_pass]
        total = sum(sizes)
        q = 2 * torch.randn(HEADS, total, DIM)
        k, v = torch.randn(2, KV_HEADS, total, DIM)
        out = engine_reads(memory, sizes, q, k, v)
        parts = zip(q.split(sizes, 1), k.split(sizes, 1), v.split(sizes, 1), strict=True)
        expected = torch.cat([paper.read(*part) for part in parts], dim=1)
        assert (out - expected).abs().max() < 1e-4
    assert memory.n_blocks == len(paper.blocks) == 19


def test_the_two_kinds_of_representatives_differ():
    torch.manual_seed(0)
    papers = [PaperInfLLM(2, by) for by in ("attention", "logits")]
    for n in SIZES[:9]:
        q = 2 * torch.randn(HEADS, n, DIM)
        k, v = torch.randn(2, KV_HEADS, n, DIM)
        for paper in papers:
            paper.read(q, k, v)
    keys = [
        torch.stack([torch.stack(h) for unit in p.representatives for h in unit]) for p in papers
    ]
    assert (keys[0] - keys[1]).abs().amax((1, 2)).gt(0).float().mean() > 0.2
