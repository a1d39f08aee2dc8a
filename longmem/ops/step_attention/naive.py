"""One token per session, written as the definition reads. Slow; it is the oracle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longmem.ops.step_attention.keys import StepKeys, Stepped
from longmem.ops.working_set_attention import MassOf
from longmem.ops.working_set_attention import attend_naive as _attend_one


def attend_naive(
    q_near: Tensor,
    q_far: Tensor,
    keys: Sequence[StepKeys],
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    mass_of: MassOf | None = None,
    want_lse: bool = False,
) -> Stepped:
    """Each session by itself, through the naive working-set attention.

    Args:
        q_near: ``[S, H, D]`` queries rotated at their own positions.
        q_far: ``[S, H, D]`` the same queries rotated at n_local.
        keys: what each of the S attends to.
        scaling: factor of the logits.
        softcap: logits become ``softcap * tanh(logits / softcap)`` (Gemma 2).
        sinks: ``[H]`` logits of an extra key with value zero (GPT-OSS).
        mass_of: what `Stepped.mass` sums; None: it is not wanted.
        want_lse: whether `Stepped.lse` is returned.
    """
    n, (kv_heads, group) = max(sum(k.lengths) for k in keys), _groups(q_near, keys)
    weights = torch.zeros(len(keys), kv_heads, group, n)
    mass = torch.zeros(len(keys), kv_heads, n)
    out, lse = torch.empty_like(q_near), torch.empty(q_near.shape[:2])
    for s, own in enumerate(keys):
        far, pending, near = own.lengths
        local = torch.cat((own.pending_k, own.near_k), dim=2).mT
        length = None if own.unused is None else far - own.unused.sum(1)
        done = _attend_one(
            q_near[s, :, None], q_far[s, :, None], own.far_k.mT, own.far_v, local, local,
            own.local_v, n_local=near, scaling=scaling, softcap=softcap, sinks=sinks,
            far_length=length, mass_of=mass_of, want_lse=True, want_weights=True,
        )  # fmt: skip
        assert done.weights is not None and done.lse is not None
        out[s], lse[s] = done.out[:, 0], done.lse[:, 0]
        weights[s, ..., : far + pending + near] = done.weights
        if done.mass is not None:
            mass[s, :, far : far + pending + near] = done.mass
    return Stepped(out, weights, mass if mass_of else None, lse if want_lse else None)


def _groups(q: Tensor, keys: Sequence[StepKeys]) -> tuple[int, int]:
    kv_heads = keys[0].near_k.shape[0]
    return kv_heads, q.shape[1] // kv_heads
