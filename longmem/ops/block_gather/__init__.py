"""Blocks gathered into a working set, wherever they lie and however they are written, and the way back."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from longmem.ops.block_gather.naive import gather_naive, scatter_naive
from longmem.ops.block_gather.plan import RAW, Move, Plan
from longmem.ops.rotary import Angles, Rotary

__all__ = ["RAW", "Move", "Payloads", "Plan", "gather", "gather_naive", "scatter", "scatter_naive"]

Payloads = Literal["raw", "bf16", "int8", "int4"]
"""How blocks are written: as the model made them, or by a codec, each block in one piece (README)."""


def gather(
    plan: Plan,
    target_k: Tensor,
    target_v: Tensor,
    payload: Payloads = "raw",
    turn: tuple[Rotary, Angles] | None = None,
) -> None:
    """Write blocks into rows of a working set: one launch, and nothing waits for the device.

    Only where kernels serve the keys (`longmem.ops.kernels.kernels_serve`).

    Args:
        plan: where each block lies, on this device or in pinned host memory, and where it goes.
        target_k, target_v: ``[H_kv, room, D]``, each head's rows side by side.
        payload: how blocks are written. What a codec wrote is decoded, to the bit of `Codec.decode`.
        turn: how keys are rotated by their block's rank: cos and sin ``[ranks, R / 2]`` in the dtype
            of the keys. None leaves keys as they are.
    """
    if plan.blocks == 0 or plan.most == 0:
        return
    _check(target_k, target_v)
    if payload == "raw" and turn is None:
        from longmem.ops.block_gather import kernel

        kernel.copy(kernel.gather_raw, "gather_raw", plan, target_k, target_v)
        return
    from longmem.ops.block_gather import decoding

    decoding.gather_into(plan, target_k, target_v, payload, turn and decoding.Turn(*turn))


def scatter(plan: Plan, k: Tensor, v: Tensor) -> None:
    """The way back: write rows of a buffer to raw payloads ``[2, H_kv, n, D]``.

    Args:
        plan: `Move.start` is the row a block comes from, `Move.address` where it goes.
        k, v: ``[H_kv, L, D]``, each head's rows side by side.
    """
    if plan.blocks == 0 or plan.most == 0:
        return
    _check(k, v)
    from longmem.ops.block_gather import kernel

    kernel.copy(kernel.scatter_raw, "scatter_raw", plan, k, v)


def _check(*buffers: Tensor) -> None:
    for rows in buffers:
        if rows.stride()[1:] != (rows.shape[2], 1):
            raise ValueError(f"rows of {rows.shape[2]} values lie with strides {rows.stride()}")
