"""A step of one layer by kernels: take the tokens in, attend, finish."""

from __future__ import annotations

import torch
from torch import Tensor

from longmem.ops.kernels import launch, launch_of
from longmem.ops.rotary import Angles, Style
from longmem.ops.scratch import Scratch
from longmem.ops.step_attention.finishing import finish
from longmem.ops.step_attention.kernel import attend_share
from longmem.ops.step_attention.keys import Stepped
from longmem.ops.step_attention.places import Places
from longmem.ops.step_attention.shapes import OP, Shape, Wanted, take_in_constants
from longmem.ops.step_attention.taking_in import take_in_token
from longmem.ops.working_set_attention.attended import MassOf

_ALIGNED = 16
"""Columns of kept logits are a multiple of this, so that rows begin where wide loads can."""


def take_in(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    angles: Angles | None,
    places: Places,
    q_near_out: Tensor,
    q_far_out: Tensor,
    *,
    style: Style = "half",
) -> None:
    """Rotate the queries of one token of each session, and append its key and value in row `hi`.

    Keys are written as they are and rotated; the attention sum of the row becomes zero. Rotations are
    those of `Rotary.rotate` bit for bit. `places` is not changed.

    Args:
        q: ``[S, H, D]`` un-rotated; any strides, but D values side by side; so k and v.
        k, v: ``[S, H_kv, D]``.
        angles: cos and sin, each ``[S, 2, 1, R / 2]`` contiguous, of the tokens' positions and of
            n_local; None where the layer does not rotate.
        places: where the sessions' buffers lie; their rows hi must have room.
        q_near_out, q_far_out: ``[S, H, D]`` contiguous; the queries rotated at their own positions and
            at n_local.
        style: see `Rotary`.
    """
    sessions, heads, dim = q.shape
    kv_heads = k.shape[1]
    cos, sin = (None, None) if angles is None else angles
    half = 0 if cos is None else cos.shape[-1]
    shape = Shape(kv_heads, heads // kv_heads, dim)
    launch(
        take_in_token, (sessions, kv_heads), q.device, launch_of(OP, "take_in", dim),
        q, k, v, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], cos, sin,
        places.addresses, places.extents, q_near_out, q_far_out,
        **take_in_constants(shape, half, style == "interleaved"),
    )  # fmt: skip


def attend_places(
    q_near: Tensor,
    q_far: Tensor,
    places: Places,
    *,
    n_local: int,
    pending: bool,
    columns: int,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    mass_of: MassOf | None = None,
    want_lse: bool = False,
    want_weights: bool = False,
    scratch: Scratch,
    appended: int = 1,
) -> Stepped:
    """As `naive.attend_naive`, for working sets that lie at `places`.

    How the keys are shared out follows from their lengths alone: a session gets the same bits with
    whatever other sessions, and wherever its buffers lie. Nothing is allocated outside `scratch`, and
    nothing waits for the device.

    Args:
        q_near, q_far: ``[S, H, D]``, D values side by side: queries rotated at their own positions and
            at n_local.
        places: of the S sessions.
        n_local: window in tokens: local tokens nearer than that are met by q_near.
        pending: whether local tokens beyond the window are attended to, un-rotated, by q_far.
        columns: no less than the far and local tokens of any session; sizes memory, and does not
            change results.
        scaling, softcap, sinks, want_lse: as in `naive.attend_naive`.
        mass_of: what is added to the sessions' attention sums in place: the weights of the window's
            keys, or their logits but the token's own, summed over the head group.
        want_weights: whether `Stepped.weights` is returned: ``[S, H_kv, G, columns]``, as many far
            columns as the KV head with most has, then the local tokens; zero where there is no key.
        scratch: what is computed and returned in.
        appended: 1: row hi holds the sessions' own tokens (`take_in`); 0: row hi - 1 does.

    Returns:
        `Stepped` without `mass`: the sums are where the sessions keep them.
    """
    sessions, heads, dim = q_near.shape
    kv_heads = places.lengths.shape[1]
    shape = Shape(kv_heads, heads // kv_heads, dim)
    wanted = Wanted(
        appended, pending, softcap is not None, sinks is not None, mass_of, want_weights
    )
    grid, device, splits = sessions * kv_heads, q_near.device, shape.splits
    width = -(-columns // _ALIGNED) * _ALIGNED

    def take(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return scratch.take(name, shape, dtype, device)

    rows = (sessions, kv_heads, splits, shape.group)
    outs, lses = take("shares", *rows, dim), take("share lses", *rows)
    logits = take("logits", *rows[:2], shape.group, width) if wanted.logits else None
    launch(
        attend_share, (grid, splits), device, launch_of(OP, "attend", dim),
        q_near, q_far, *q_near.stride()[:2], *q_far.stride()[:2], *places, outs, lses, logits,
        width, n_local, scaling, softcap or 1.0, **wanted.attend(shape),
    )  # fmt: skip
    out, lse = (
        take("attended", sessions, heads, dim, dtype=q_near.dtype),
        take("lse", *rows[:1], heads),
    )
    how = launch_of(OP, "finish", dim)
    blocks = -(-width // how.blocks["BLOCK_C"]) if wanted.logits else 0
    launch(
        finish, (grid, shape.group + blocks), device, how,
        outs, lses, sinks, *places, out, lse, logits, width, n_local, **wanted.finish(shape),
    )  # fmt: skip
    weights = logits[..., :columns] if logits is not None and want_weights else None
    return Stepped(out, weights, None, lse if want_lse else None)
