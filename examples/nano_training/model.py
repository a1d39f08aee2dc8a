"""Qwen3's decoder in plain PyTorch with the memory's geometry.

Near keys are seen at their true distance, far ones at a constant distance or at their turn's end.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3Config

from nano_training.finding import OTHER_TOKENS, OTHER_TURNS, Found, find

MAX_INIT = 16  # columns that may be initial tokens


class Rotary:
    """cos and sin of positions, as Qwen3 computes them."""

    def __init__(self, config: Qwen3Config) -> None:
        dim = config.head_dim
        self.inverse = 1.0 / (
            config.rope_parameters["rope_theta"] ** (torch.arange(0, dim, 2).float() / dim)
        )

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [B, T] -> cos, sin [B, 1, T, D]."""
        angles = positions[:, None, :, None].float() * self.inverse
        angles = torch.cat([angles, angles], -1)
        return angles.cos(), angles.sin()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """x [B, H, T, D] at the positions of `table`."""
    left, right = x.chunk(2, -1)
    return x * table[0] + torch.cat([-right, left], -1) * table[1]


class Geometry:
    """Where keys are seen from where, for one batch.

    Args:
        line_end: [B, T], position of the last token of each token's turn.
        keep: [B, T] bool, which keys stay visible once far.
        shape: per row [B, 1]: `n_local`, `n_init`, `ordered` (far keys at their turn's end instead
            of at distance n_local), `others` (the row looks up turns of other rows too), and
            `other_at` [B, turns], where ordered rows see those.
    """

    def __init__(
        self, rotary: Rotary, line_end: Tensor, keep: Tensor, shape: dict[str, Tensor]
    ) -> None:
        n_local, ordered = shape["n_local"], shape["ordered"]
        position = torch.arange(line_end.shape[1])[None]
        self.near = rotary(position)
        self.constant = rotary(n_local.expand_as(line_end))
        self.far_q = rotary(torch.where(ordered, position, n_local))
        self.far_k = rotary(torch.where(ordered, line_end, torch.zeros_like(line_end)))
        other_at = torch.where(ordered, shape["other_at"], torch.zeros_like(shape["other_at"]))
        self.other_k = rotary(other_at.repeat_interleave(OTHER_TOKENS // OTHER_TURNS, 1))
        self.sees_others = shape["others"][:, :, None, None]
        distance = (position[0][:, None] - position[0][None, :])[None]  # [1, T, T]
        self.is_near = (distance < n_local[:, :, None])[:, None]
        initial = (position < shape["n_init"])[:, None, None]
        causal = (distance >= 0)[:, None]
        self.lower = causal & (self.is_near | initial)
        self.upper = causal & (self.is_near | initial | keep[:, None, None])


class Attention(nn.Module):
    """Grouped-query attention with QK-norm over two score matrices."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        width, self.dim = config.hidden_size, config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = nn.Linear(width, self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(width, self.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(width, self.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, width, bias=False)
        self.q_norm = nn.RMSNorm(self.dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(self.dim, eps=config.rms_norm_eps)

    def forward(
        self, x: Tensor, geometry: Geometry, batch: dict[str, Tensor] | None
    ) -> tuple[Tensor, Found | None]:
        """x [B, T, C] -> the same, and what was found if the layer looks up (`batch` is given)."""
        b, t, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(b, t, self.heads, self.dim)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(b, t, self.kv_heads, self.dim)).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.kv_heads, self.dim).transpose(1, 2)
        near = rotate(q, geometry.near) @ self._wide(rotate(k, geometry.near)).transpose(-1, -2)
        if batch is None:
            scores, mask, found = self._near_and_initial(q, k, near, geometry), geometry.lower, None
        else:
            found = find(rotate(q, geometry.constant), k, batch)
            scores, mask, v = self._with_far(q, k, v, near, geometry, found.turns)
        weights = torch.where(mask, scores * self.dim**-0.5, -1e30).softmax(-1)
        out = (weights @ self._wide(v)).transpose(1, 2).reshape(b, t, -1)
        return self.o_proj(out), found

    def _wide(self, x: Tensor) -> Tensor:
        """[B, H_kv, T, D] -> [B, H, T, D]."""
        return x.repeat_interleave(self.heads // self.kv_heads, 1)

    def _near_and_initial(self, q: Tensor, k: Tensor, near: Tensor, geometry: Geometry) -> Tensor:
        table = tuple(part[:, :, :MAX_INIT] for part in geometry.far_k)
        initial = self._wide(rotate(k[:, :, :MAX_INIT], table)).transpose(-1, -2)
        far = rotate(q, geometry.far_q) @ initial
        mixed = torch.where(geometry.is_near[..., :MAX_INIT], near[..., :MAX_INIT], far)
        return torch.cat([mixed, near[..., MAX_INIT:]], -1)

    def _with_far(
        self, q: Tensor, k: Tensor, v: Tensor, near: Tensor, geometry: Geometry, turns: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, mask and values with the far keys of the row and the other rows' tokens `turns` [B, E]."""
        b, h, t, d = k.shape
        other = turns.clamp(min=0)
        k_other = k.transpose(1, 2).reshape(b * t, h, d)[other].transpose(1, 2)  # [B, H_kv, E, D]
        v_other = v.transpose(1, 2).reshape(b * t, h, d)[other].transpose(1, 2)
        keys = torch.cat([rotate(k, geometry.far_k), rotate(k_other, geometry.other_k)], 2)
        far = rotate(q, geometry.far_q) @ self._wide(keys).transpose(-1, -2)
        scores = torch.cat([torch.where(geometry.is_near, near, far[..., :t]), far[..., t:]], -1)
        seen = (turns >= 0)[:, None, None] & geometry.sees_others
        mask = torch.cat([geometry.upper, seen.expand(b, 1, t, -1)], -1)
        return scores, mask, torch.cat([v, v_other], 2)


class Layer(nn.Module):
    """One decoder layer, its parameters named as in transformers."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.input_layernorm = nn.RMSNorm(width, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=config.rms_norm_eps)
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(width, inner, bias=False),
                "up_proj": nn.Linear(width, inner, bias=False),
                "down_proj": nn.Linear(inner, width, bias=False),
            }
        )

    def forward(
        self, x: Tensor, geometry: Geometry, batch: dict[str, Tensor] | None
    ) -> tuple[Tensor, Found | None]:
        """x [B, T, C] -> the same, and what its attention found."""
        out, found = self.self_attn(self.input_layernorm(x), geometry, batch)
        x = x + out
        h = self.post_attention_layernorm(x)
        inner = F.silu(self.mlp["gate_proj"](h)) * self.mlp["up_proj"](h)
        return x + self.mlp["down_proj"](inner), found


class Nano(nn.Module):
    """The decoder; the upper half of its layers looks far turns up."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.first_lookup = config.num_hidden_layers // 2
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, geometry: Geometry, batch: dict[str, Tensor]) -> tuple[Tensor, list[Found]]:
        """Hidden states [B, T, C] and what each layer that looks up has found."""
        x, all_found = self.embed_tokens(batch["ids"][:, :-1]), []
        for index, layer in enumerate(self.layers):
            x, found = layer(x, geometry, batch if index >= self.first_lookup else None)
            if found is not None:
                all_found.append(found)
        return self.norm(x), all_found
