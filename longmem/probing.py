"""Measuring what a model's attention layers do with positions. Plain tensors, no transformers.

A probing pass runs a few tokens through the model while attention returns zeros, so that tokens do
not mix. What the layers were given is compared between passes that differ in one thing: positions,
or the order of the tokens. Layers are described by what they did, not by what they are named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from longmem.memory import AttentionCall, LayerSpec
from longmem.ops.rotary import Rotary, Style
from longmem.ops.working_set_attention import attend

_NEAR = (0, 1, 2, 5, 9, 14, 20, 27)
"""Positions that tell all rotation tables apart."""


class ProbeError(Exception):
    """The model does something longmem cannot hold; the message is the reason."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What one attention layer was given in a probing pass.

    Args:
        q: ``[1, H, T, D]`` queries.
        k, v: ``[1, H_kv, T, D]`` keys and values.
        call: its settings.
        mask: ``[1, 1, 2, n + 1]`` bool; see `own_window`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    call: AttentionCall
    mask: Tensor | None


@dataclass(eq=False)
class Probe:
    """Records what each layer is given; its attention is zero."""

    seen: dict[int, Seen] = field(default_factory=dict)

    def note(self, layer: int, seen: Seen) -> Tensor:
        """Record one layer; returns zeros ``[1, T, H, D]``."""
        if layer in self.seen:
            raise ProbeError(f"layer {layer} calls attention more than once in a pass")
        if seen.q.shape[-1] != seen.k.shape[-1] or seen.k.shape != seen.v.shape:
            raise ProbeError(f"the keys and values of layer {layer} differ in shape")
        self.seen[layer] = seen
        return torch.zeros_like(seen.q.transpose(1, 2))


Run = Callable[[Tensor, Tensor], dict[int, Seen]]
"""One probing pass over token ids ``[T]`` at positions ``[T]``: what each layer was given."""


def measure(
    run: Run,
    tables: Callable[[], Iterable[Tensor]],
    vocab_size: int,
    limits: Sequence[int],
    device: torch.device,
) -> tuple[tuple[LayerSpec, ...], int]:
    """What the layers of a model are, and how many positions that holds for.

    Args:
        run: makes a probing pass.
        tables: the rotation tables ``[R / 2]`` of the last pass, in radians per position.
        vocab_size: number of token ids.
        limits: candidates for the number of positions, largest first.
        device: of the ids.

    Raises:
        ProbeError: with the reason why longmem cannot hold the model's memory.
    """
    near = torch.tensor(_NEAR, device=device)
    ids = (torch.arange(len(near), device=device) * 7 + 3) % vocab_size
    turned, flat = run(ids, near), run(ids, torch.zeros_like(near))
    specs = _describe(flat, turned, near, tuple(tables()))
    positions = _usable_positions(run, ids, flat, specs, limits)
    back = run(ids.flip(0), torch.zeros_like(near))  # last, for it leaves the first table
    for i in flat:
        _refuse_influence(flat[i], back[i])
    return specs, positions


def _describe(
    flat: dict[int, Seen], turned: dict[int, Seen], at: Tensor, tables: Sequence[Tensor]
) -> tuple[LayerSpec, ...]:
    candidates: dict[torch.device, list[Rotary]] = {}
    specs = []
    for i, seen in sorted(flat.items()):
        device = seen.k.device
        if device not in candidates:
            candidates[device] = rotaries(table.to(device) for table in tables)
        rotary = fit(seen, turned[i], at, candidates[device])
        specs.append(
            LayerSpec(
                index=i,
                heads=seen.q.shape[1],
                kv_heads=seen.k.shape[1],
                dim=seen.q.shape[3],
                rotary=rotary,
                sliding=own_window(seen.mask),
                scaling=seen.call.scaling,
                dtype=seen.k.dtype,
                device=device,
            )
        )
    return tuple(specs)


def _usable_positions(
    run: Run,
    ids: Tensor,
    flat: dict[int, Seen],
    specs: Sequence[LayerSpec],
    limits: Sequence[int],
) -> int:
    """The largest of `limits` up to which the measured rotation holds: not beyond a change of table
    (longrope), nor to where queries are scaled by their position (Ministral 3)."""
    for positions in limits:
        at = torch.linspace(0, positions - 1, len(ids), device=ids.device).long()
        far = run(ids, at)
        if all(misfit(flat[s.index], far[s.index], at, s.rotary) <= 3e-2 for s in specs):
            return positions
    raise ProbeError("what it does with distant positions is not a known rotation (RoPE)")


def own_window(mask: Tensor | None) -> int | None:
    """The tokens a layer attends to, the present one included; None for all.

    Args:
        mask: ``[..., 2, n + 1]`` bool: which keys 0 .. n the queries at n - 2 and n - 1 see.
    """
    if mask is None or mask.dtype != torch.bool or mask.shape[-2] != 2:
        raise ProbeError("its attention mask does not come through transformers' mask registry")
    n = mask.shape[-1] - 1
    rows, key = mask.reshape(-1, n + 1)[-2:], torch.arange(n + 1, device=mask.device)
    window = int(rows[1].sum())
    for row, query in zip(rows, (n - 2, n - 1), strict=True):
        if not torch.equal(row, (key <= query) & (key > query - window)):
            raise ProbeError("its attention mask is neither causal nor a sliding window")
    return None if window >= n else window


def rotaries(tables: Iterable[Tensor]) -> list[Rotary]:
    """Every way of rotating by these tables ``[R / 2]``."""
    styles: tuple[Style, ...] = ("half", "interleaved")
    return [
        Rotary(sign * table.detach().to(torch.float64, copy=True), style)
        for table in tables
        for style in styles
        for sign in (1, -1)  # NanoChat turns the other way round
    ]


def fit(flat: Seen, turned: Seen, at: Tensor, candidates: Sequence[Rotary]) -> Rotary | None:
    """The rotation by positions `at` ``[T]`` that makes `turned` of `flat`; None if none."""
    if not difference(turned.v, flat.v) <= _tolerance(flat.v):
        raise ProbeError(
            "positions reach its values, as they do with learned or sinusoidal position embeddings"
        )
    if misfit(flat, turned, at, None) <= _tolerance(flat.q):
        return None
    fitting = [r for r in candidates if 2 * len(r.inv_freq) <= flat.q.shape[3]]
    best = min(fitting, key=lambda r: misfit(flat, turned, at, r), default=None)
    if best is None or not misfit(flat, turned, at, best) <= _tolerance(flat.q):
        raise ProbeError("it encodes positions in a way that is not a known rotation (RoPE)")
    return best


def misfit(flat: Seen, turned: Seen, at: Tensor, rotary: Rotary | None) -> float:
    """How far `turned` is from `flat` rotated to positions `at` ``[T]``, relative to its size."""
    pairs = ((flat.q, turned.q), (flat.k, turned.k))
    if rotary is None:
        return max(difference(a, b) for a, b in pairs)
    # angles in float32, as transformers takes them: it is the rule that is compared here
    angle = at.to(flat.q.device, torch.float32)[:, None] * rotary.inv_freq.float()
    angles = (angle.cos(), angle.sin())
    return max(difference(rotary.rotate(a.float(), angles), b) for a, b in pairs)


def _refuse_influence(forth: Seen, back: Seen) -> None:
    """Refuse a layer whose input depends on the order of tokens although attention is zero."""
    for a, b in ((forth.q, back.q), (forth.k, back.k), (forth.v, back.v)):
        if not difference(b.flip(2), a) <= _tolerance(a):
            raise ProbeError(
                "tokens influence others outside attention, or positions are counted by the model"
            )


def loud(like: Tensor, scaling: float) -> Tensor:
    """Made-up queries or keys of a tensor's shape ``[1, H, T, D]``, float32, whose logits are
    large enough for caps and sinks to show."""
    made = torch.randn(like.shape, generator=torch.Generator().manual_seed(like.shape[1]))
    loudness = math.sqrt(8 / (scaling * math.sqrt(like.shape[3])))
    return (made * loudness).to(like.device)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
    """What longmem computes within the window: ``[1, H, T, D]``, ``[1, H_kv, T, D]`` twice ->
    ``[1, T, H, D]``."""
    none = k[0, :, :0]
    out = attend(
        q[0], q[0], none, none, k[0], k[0], v[0],
        n_local=q.shape[2], scaling=call.scaling, softcap=call.softcap, sinks=call.sinks,
    ).out  # fmt: skip
    return out.transpose(0, 1)[None]


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference of `a` from `b`, relative to the largest element of `b`."""
    b = b.float()
    return float((a.float() - b).abs().max() / b.abs().max().clamp_min(1e-30))


def _tolerance(x: Tensor) -> float:
    """What rounding in x's dtype may do to rotated elements, relative to the largest."""
    return 1e-3 if x.dtype == torch.float32 else 3e-2
