"""Measuring what a model's attention layers do with positions. Plain tensors, no transformers.

A probing pass runs a few tokens through the model while attention returns zeros, so that tokens do
not mix. What the layers were given is compared between passes that differ in one thing: positions,
or the order of the tokens. Layers are then described by what they did, not by what they are named.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from longmem.memory import AttentionCall
from longmem.ops.rotary import Rotary, Style
from longmem.ops.working_set_attention import attend


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


@dataclass
class Probe:
    """A router that records what layers are given; its attention returns zeros.

    Args:
        reads: whether attention itself is to be compared in this pass, too.
    """

    reads: bool = False
    seen: dict[int, Seen] = field(default_factory=dict)

    def note(self, layer: int, seen: Seen) -> Tensor:
        """Record one layer; returns zeros ``[1, T, H, D]``."""
        if layer in self.seen:
            raise ProbeError(f"layer {layer} calls attention more than once in a pass")
        if seen.q.shape[-1] != seen.k.shape[-1] or seen.k.shape != seen.v.shape:
            raise ProbeError(f"the keys and values of layer {layer} differ in shape")
        self.seen[layer] = seen
        return torch.zeros_like(seen.q.transpose(1, 2))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """As `note`, without a mask."""
        return self.note(layer, Seen(q.clone(), k.clone(), v.clone(), call, None))


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


def rotaries(inv_freqs: Iterable[Tensor]) -> list[Rotary]:
    """Every way of rotating by these tables ``[R / 2]``, in radians per position."""
    styles: tuple[Style, ...] = ("half", "interleaved")
    return [
        Rotary(sign * table.detach().to(torch.float64, copy=True), style)
        for table in inv_freqs
        for style in styles
        for sign in (1, -1)  # NanoChat turns the other way round
    ]


def fit(flat: Seen, turned: Seen, at: Tensor, candidates: Sequence[Rotary]) -> Rotary | None:
    """The rotation by positions `at` ``[T]`` that makes `turned` of `flat`; None where none does.

    Raises:
        ProbeError: the layer does something else with positions.
    """
    if difference(turned.v, flat.v) > tolerance(flat.v):
        raise ProbeError(
            "positions reach its values, as they do with learned or sinusoidal position embeddings"
        )
    if misfit(flat, turned, at, None) <= tolerance(flat.q):
        return None
    fitting = [r for r in candidates if 2 * len(r.inv_freq) <= flat.q.shape[-1]]
    best = min(fitting, key=lambda r: misfit(flat, turned, at, r), default=None)
    if best is None or not misfit(flat, turned, at, best) <= tolerance(flat.q):
        raise ProbeError("it encodes positions in a way that is not a known rotation (RoPE)")
    return best


def misfit(flat: Seen, turned: Seen, at: Tensor, rotary: Rotary | None) -> float:
    """How far `turned` is from `flat` rotated to positions `at` ``[T]``, relative to its size."""
    pairs = ((flat.q, turned.q), (flat.k, turned.k))
    if rotary is None:
        return max(difference(a, b) for a, b in pairs)
    # float32 angles, as transformers takes them: only the rule is to be compared here
    angle = at.to(flat.q.device, torch.float32)[:, None] * rotary.inv_freq.float()
    return max(difference(rotary.rotate(a.float(), (angle.cos(), angle.sin())), b) for a, b in pairs)


def refuse_influence(forth: Seen, back: Seen) -> None:
    """Refuse a layer whose input depends on the order of tokens while attention returns zeros.

    Args:
        forth, back: one layer in two passes, the second over the same tokens in reverse order.
    """
    for a, b in ((forth.q, back.q), (forth.k, back.k), (forth.v, back.v)):
        if difference(b.flip(2), a) > tolerance(a):
            raise ProbeError(
                "tokens influence others outside attention (or positions are counted by the model)"
            )


def loud(like: Tensor, heads: int, scaling: float) -> Tensor:
    """Made-up queries or keys ``[1, heads, T, D]`` float32, loud enough for caps and sinks to show."""
    shape = (1, heads, *like.shape[2:])
    made = torch.randn(shape, generator=torch.Generator().manual_seed(heads))
    return (made * (8 / (scaling * like.shape[-1] ** 0.5)) ** 0.5).to(like.device)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
    """What longmem attends to within the window: ``[1, H, T, D]``, ``[1, H_kv, T, D]`` twice ->
    ``[1, T, H, D]``."""
    none = k[0, :, :0]
    out, _ = attend(
        q[0], q[0], none, none, k[0], k[0], v[0],
        n_local=q.shape[2], scaling=call.scaling, softcap=call.softcap, sinks=call.sinks,
    )  # fmt: skip
    return out.transpose(0, 1)[None]


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference of `a` from `b`, relative to the largest element of `b`."""
    b = b.float()
    return float((a.float() - b).abs().max() / b.abs().max().clamp_min(1e-30))


def tolerance(x: Tensor) -> float:
    """What rounding in x's dtype may do to rotated elements, relative to the largest."""
    return 1e-4 if x.dtype == torch.float32 else 3e-2
