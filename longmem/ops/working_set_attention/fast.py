"""Attention over the working set by kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from longmem.ops.kernels import Launch, launch, launch_of
from longmem.ops.working_set_attention.attended import Attended, MassOf
from longmem.ops.working_set_attention.kernel import attend_tile, combine
from longmem.ops.working_set_attention.mass import attention_mass, follower_logits, sum_queries

OP = "working_set_attention"
FEW = 64
"""Rows (tokens times heads of a group) up to which the tile of queries is the small one."""
LARGE = {(8, 0), (8, 7), (9, 0), (10, 0), (10, 3)}
"""Compute capabilities whose programs can have the shared memory of the large tiles; others have 99 KiB."""
PROGRAMS = 132
"""Programs that run side by side on the GPUs this is made for. A constant: were it asked of the device,
the order of sums, and with it the last bit, would depend on where a session runs."""
SPLITS = 16
TILES_A_SPLIT = 4
"""Tiles of keys below which splitting them costs more than it gains."""


def attend_fast(
    q_near: Tensor,
    q_far: Tensor,
    far_k: Tensor,
    far_v: Tensor,
    local_raw: Tensor,
    local_rot: Tensor,
    local_v: Tensor,
    *,
    n_local: int,
    scaling: float,
    keep_pending: bool = True,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    far_length: Tensor | None = None,
    mass_of: MassOf | None = "attention",
    want_lse: bool = False,
) -> Attended:
    """As `naive.attend_naive`, which defines it, in one online softmax; in bfloat16 or float16 with unit
    strides along D, and `scaling` > 0. Logits and sums are float32.

    The result depends on values, shapes and `far_length` alone, to the last bit.
    """
    heads, n_query, dim = q_near.shape
    kv_heads, n_far, _ = far_k.shape
    n_keys = local_raw.shape[1]
    group = heads // kv_heads
    name = launch_for(group * n_query, q_near.device)
    how = launch_of(OP, name, dim)
    tiles = -(-group * n_query // how.blocks["TILE_Q"])
    splits = splits_of(tiles * kv_heads, n_far, n_keys, how)
    if splits > 1:
        how = launch_of(OP, f"{name}_split", dim)
        tiles = -(-group * n_query // how.blocks["TILE_Q"])
    out = torch.empty_like(q_near)
    lse = torch.empty(heads, n_query, dtype=torch.float32, device=out.device)
    made, made_lse = out, lse
    if splits > 1:
        made = torch.empty(splits, heads, n_query, dim, dtype=torch.float32, device=out.device)
        made_lse = torch.empty(splits, heads, n_query, dtype=torch.float32, device=out.device)
    keys = (far_k, far_v, local_raw, local_rot, local_v)
    launch(
        attend_tile, (tiles, kv_heads, splits), out.device, how,
        q_near, q_far, *keys, far_length, sinks, made, made_lse,
        n_query, n_keys, n_far, n_local, scaling, softcap or 1.0,
        *_steps(q_near, q_far, made), *(x.stride(0) for x in keys),
        *(x.stride(1) for x in keys), GROUP=group, PENDING=keep_pending, SPLIT=splits > 1,
        **_shape(dim, softcap),
    )  # fmt: skip
    if splits > 1:
        _combine(made, made_lse, out, lse)
    mass = None
    if mass_of == "attention":
        mass = _attention(q_near, local_rot, lse, n_local, scaling, softcap)
    elif mass_of == "logits":
        mass = _logits(q_near, local_rot, n_local, scaling)
    return Attended(out, mass, lse if want_lse else None)


def launch_for(rows: int, device: torch.device) -> str:
    """The name of the launch for so many rows (tokens times heads of a group) on a device."""
    large = device.type != "cuda" or torch.cuda.get_device_capability(device) in LARGE
    return "attend" if large and rows > FEW else "attend_few"


def splits_of(programs: int, n_far: int, n_keys: int, how: Launch) -> int:
    """Into how many shares the keys are split, so that the GPU is full: the least time in units of one
    program over all keys, each share being written and read once more in between.

    Args:
        programs: tiles of queries times KV heads.
        n_far, n_keys: F and L.
        how: launch of the kernel.
    """
    tile = how.blocks["TILE_K"]
    tiles = -(-n_far // tile) - (-n_keys // tile)
    most = min(SPLITS, -(-2 * PROGRAMS // programs), tiles // TILES_A_SPLIT)
    time = {s: -(-programs * s // PROGRAMS) / s + s * programs / 3600 for s in range(2, most + 1)}
    time[1] = -(-programs // PROGRAMS)
    return min(time, key=lambda s: (time[s], s))


def _steps(*tensors: Tensor) -> list[int]:
    """Elements from head to head, and from row to row, of each ``[.., rows, D]``."""
    return [step for x in tensors for step in (x.stride(-3), x.stride(-2))]


def _shape(dim: int, softcap: float | None) -> Mapping[str, Any]:
    return {"DIM": dim, "WIDE": 1 << (dim - 1).bit_length(), "CAPPED": softcap is not None}


def _combine(parts: Tensor, part_lse: Tensor, out: Tensor, lse: Tensor) -> None:
    splits, heads, n_query, dim = parts.shape
    how = launch_of(OP, "combine", dim)
    rows = heads * n_query
    launch(
        combine, (-(-rows // how.blocks["TILE_Q"]),), out.device, how,
        parts, part_lse, out, lse, n_query, rows, splits, *_steps(out),
        DIM=dim, WIDE=1 << (dim - 1).bit_length(),
    )  # fmt: skip


def _attention(
    q: Tensor, rot: Tensor, lse: Tensor, n_local: int, scaling: float, softcap: float | None
) -> Tensor:
    """``[H_kv, L]`` weights, from logits computed once more."""
    heads, n_query, dim = q.shape
    kv_heads, n_keys, _ = rot.shape
    how = launch_of(OP, "attention_mass" if softcap is None else "attention_mass_capped", dim)
    mass = torch.empty(kv_heads, n_keys, dtype=torch.float32, device=q.device)
    launch(
        attention_mass, (-(-n_keys // how.blocks["TILE_K"]), kv_heads), q.device, how,
        q, rot, lse, mass, n_query, n_keys, n_local, scaling, softcap or 1.0, *_steps(q, rot),
        GROUP=heads // kv_heads, **_shape(dim, softcap),
    )  # fmt: skip
    return mass


def _logits(q: Tensor, rot: Tensor, n_local: int, scaling: float) -> Tensor:
    """``[H_kv, L]`` logits of the followers."""
    heads, n_query, dim = q.shape
    kv_heads, n_keys, _ = rot.shape
    sums = torch.empty(kv_heads, n_query + 1, dim, dtype=torch.float32, device=q.device)
    mass = torch.empty(kv_heads, n_keys, dtype=torch.float32, device=q.device)
    how = launch_of(OP, "sum_queries", dim)
    launch(
        sum_queries, (-(-dim // how.blocks["TILE_D"]), kv_heads), q.device, how,
        q, sums, n_query, *_steps(q), GROUP=heads // kv_heads, DIM=dim,
    )  # fmt: skip
    how = launch_of(OP, "follower_logits", dim)
    launch(
        follower_logits, (-(-n_keys // how.blocks["TILE_K"]), kv_heads), q.device, how,
        sums, rot, mass, n_query, n_keys, n_local, scaling, *_steps(rot),
        DIM=dim, WIDE=1 << (dim - 1).bit_length(),
    )  # fmt: skip
    return mass
