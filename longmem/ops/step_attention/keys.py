"""What a decode step attends to, and what comes of it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class StepKeys(NamedTuple):
    """One session's working set in one layer, where it lies.

    Args:
        far_k: ``[H_kv, D, F]`` initial tokens and blocks, met by the query rotated at n_local.
        far_v: ``[H_kv, F, D]``.
        pending_k: ``[H_kv, D, P]`` un-rotated local keys beyond the window, met by the same query.
        near_k: ``[H_kv, D, W]`` rotated keys of the window, met by the query at its own position; the
            last is the token's own.
        local_v: ``[H_kv, P + W, D]`` values of pending tokens and window.
        unused: ``[H_kv, F]`` bool, places of the far keys that hold no token; None: all hold one.
    """

    far_k: Tensor
    far_v: Tensor
    pending_k: Tensor
    near_k: Tensor
    local_v: Tensor
    unused: Tensor | None = None

    @property
    def lengths(self) -> tuple[int, int, int]:
        """F, P and W."""
        return self.far_k.shape[2], self.pending_k.shape[2], self.near_k.shape[2]


class Stepped(NamedTuple):
    """Result of `attend_steps` for S tokens, in scratch memory: gone with the next call.

    Args:
        out: ``[S, H, D]``.
        weights: ``[S, H_kv, G, N]`` float32; session s uses the first F + P + W of the N places. None
            where they were not wanted.
        mass: ``[S, H_kv, N]`` float32: weights, or logits, summed over the head group; None unless
            wanted. The logits include the token's own.
        lse: ``[S, H]`` float32, log of the softmax's denominator; None unless wanted.
    """

    out: Tensor
    weights: Tensor | None
    mass: Tensor | None
    lse: Tensor | None
