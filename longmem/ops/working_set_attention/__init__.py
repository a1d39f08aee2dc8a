"""Attention over initial tokens, looked-up blocks, pending tokens and local window."""

from __future__ import annotations

import torch
from torch import Tensor

from longmem.ops.kernels import kernels_serve
from longmem.ops.working_set_attention.attended import Attended, MassOf
from longmem.ops.working_set_attention.blocked import attend_blocked
from longmem.ops.working_set_attention.naive import attend_naive

__all__ = ["Attended", "MassOf", "attend", "attend_blocked", "attend_naive"]


def attend(
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
    want_weights: bool = False,
) -> Attended:
    """Attention of T new tokens; `attend_naive` defines it, its arguments, shapes and results.

    By the kernels where they serve, else by `attend_blocked`, which also gives the weights. Neither
    waits for the device.
    """
    tensors = (q_near, q_far, far_k, far_v, local_raw, local_rot, local_v)
    if want_weights or scaling <= 0 or not _kernels_take(tensors):
        return attend_blocked(
            *tensors, n_local=n_local, scaling=scaling, keep_pending=keep_pending, softcap=softcap,
            sinks=sinks, far_length=far_length, mass_of=mass_of, want_lse=want_lse,
            want_weights=want_weights,
        )  # fmt: skip
    from longmem.ops.working_set_attention.fast import attend_fast  # it imports triton

    return attend_fast(
        *tensors, n_local=n_local, scaling=scaling, keep_pending=keep_pending, softcap=softcap,
        sinks=sinks, far_length=far_length, mass_of=mass_of, want_lse=want_lse,
    )  # fmt: skip


def _kernels_take(tensors: tuple[Tensor, ...]) -> bool:
    """Whether the kernels serve these, and no gradient is wanted: they have none."""
    q = tensors[0]
    return (
        kernels_serve(q.device, q.dtype, q.shape[-1])
        and all(x.dtype == q.dtype and (x.stride(-1) == 1 or not x.numel()) for x in tensors)
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
    )
