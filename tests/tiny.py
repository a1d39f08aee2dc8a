"""Small random models and whole-history references for the tests."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from longmem.attention import ModelInfo, attach, forward
from longmem.config import MemoryConfig
from longmem.memory import AttentionCall, ForwardPass, ReadSpan, SessionMemory

VOCAB = 200


def qwen3(layers: int = 3, heads: int = 4, kv_heads: int = 2, seed: int = 0) -> PreTrainedModel:
    """A tiny random Qwen3 whose attention is far from uniform."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=8,
        max_position_embeddings=256,
        initializer_range=0.4,
    )
    return Qwen3ForCausalLM._from_config(config, attn_implementation="eager").eval()


def attached(model: PreTrainedModel) -> tuple[PreTrainedModel, ModelInfo]:
    """A copy of the model routed through longmem."""
    model = copy.deepcopy(model)
    return model, attach(model)


def tokens(n: int, seed: int = 1) -> list[int]:
    """Random token ids."""
    return torch.randint(0, VOCAB, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def new_memory(info: ModelInfo, config: MemoryConfig) -> SessionMemory:
    """An empty session memory with a journal."""
    return SessionMemory(info.layers, config, config.n_init)


def read(
    model: PreTrainedModel,
    memory: SessionMemory,
    ids: Sequence[int],
    spans: Sequence[ReadSpan],
    turn_starts: Sequence[int] = (),
) -> Tensor:
    """One pass over one session; logits ``[T, V]`` of every token."""
    run = ForwardPass([(memory, memory.prepare(spans, turn_starts))])
    logits = forward(model, torch.tensor([list(ids)]), run, torch.arange(len(ids)))
    run.finish()
    return logits


def read_in_passes(
    model: PreTrainedModel,
    memory: SessionMemory,
    ids: Sequence[int],
    span: int,
    spans_per_pass: int,
) -> Tensor:
    """Read `ids` in look-up spans of `span` tokens, several to a pass; logits ``[T, V]``."""
    step, rows = span * spans_per_pass, []
    for at in range(0, len(ids), step):
        part = ids[at : at + step]
        sizes = [min(span, len(part) - i) for i in range(0, len(part), span)]
        rows.append(read(model, memory, part, [ReadSpan(n, n) for n in sizes]))
    return torch.cat(rows)


class WholeHistory:
    """Attention over all tokens at distance min(true, n_local), straight from the definition."""

    def __init__(self, info: ModelInfo, n_local: int) -> None:
        self._info, self._n_local = info, n_local

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        weights = self.weights(layer, q[0], k[0], call.scaling)
        out = weights @ v[0].repeat_interleave(q.shape[1] // k.shape[1], 0)
        return out.transpose(0, 1)[None]

    def weights(self, layer: int, q: Tensor, k: Tensor, scaling: float) -> Tensor:
        """Attention weights ``[H, T, T]`` of un-rotated queries and keys."""
        rotary, n = self._info.layers[layer].rotary, k.shape[1]
        assert rotary is not None
        near = rotary.angles(torch.arange(n), q.dtype)
        far = rotary.angles(torch.tensor([self._n_local]), q.dtype)
        group = q.shape[0] // k.shape[0]
        near_k, wide_k = (t.repeat_interleave(group, 0) for t in (rotary.rotate(k, near), k))
        logits = torch.where(
            distances(n) < self._n_local,
            rotary.rotate(q, near) @ near_k.mT,
            rotary.rotate(q, far) @ wide_k.mT,
        )
        return torch.softmax((logits * scaling).masked_fill(distances(n) < 0, -torch.inf), -1)


def distances(n: int) -> Tensor:
    """``[n, n]``: how many tokens the key lies behind the query."""
    return torch.arange(n)[:, None] - torch.arange(n)[None]


def whole_history_logits(
    model: PreTrainedModel, info: ModelInfo, ids: Sequence[int], n_local: int
) -> Tensor:
    """Logits ``[T, V]`` of `ids` in one pass through `WholeHistory`."""
    router = WholeHistory(info, n_local)
    return forward(model, torch.tensor([list(ids)]), router, torch.arange(len(ids)))
