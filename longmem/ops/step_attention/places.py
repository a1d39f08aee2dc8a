"""Where the keys and values of one layer lie, session by session, as the kernels read it."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from longmem.ops.scratch import Scratch


class Places(NamedTuple):
    """The working sets of S sessions in one layer, on the device.

    All of it may change between two calls without a word to the host: a captured graph that holds
    these tensors reads what lies in them when it runs.

    Args:
        addresses: ``[S, 6]`` int64, of row 0 of far_k, far_v ``[H_kv, far_room, D]``, raw, rot, v
            ``[H_kv, room, D]`` and mass ``[H_kv, room]`` float32 (0 where the layer keeps none). rot
            is raw where the layer does not rotate. Each is a multiple of 16.
        extents: ``[S, 4]`` int32: far_room, lo, hi, room in tokens. Rows lo .. hi - 1 of the local
            buffers are live.
        lengths: ``[S, H_kv]`` int32, far tokens each KV head has.
    """

    addresses: Tensor
    extents: Tensor
    lengths: Tensor


class Place(NamedTuple):
    """One session's row of `Places` as the host knows it.

    Args:
        far_k, far_v, raw, rot, v, mass: addresses.
        far_room, lo, hi, room: tokens.
        lengths: far tokens of each KV head; one number where all have the same.
    """

    far_k: int
    far_v: int
    raw: int
    rot: int
    v: int
    mass: int
    far_room: int
    lo: int
    hi: int
    room: int
    lengths: int | Sequence[int]

    @property
    def columns(self) -> int:
        """Most tokens a KV head attends to."""
        return self.hi - self.lo + max(self.by_head(1))

    def by_head(self, kv_heads: int) -> Sequence[int]:
        """`lengths`, one for each of the KV heads."""
        return [self.lengths] * kv_heads if isinstance(self.lengths, int) else self.lengths


def upload(rows: Sequence[Place], kv_heads: int, scratch: Scratch, device: torch.device) -> Places:
    """The rows on the device, in `scratch`, by one copy that nothing waits for.

    Args:
        rows: one per session.
        kv_heads: H_kv.
        scratch: where they lie until the next call.
        device: of the sessions' keys.
    """
    sessions = len(rows)
    addresses, words = array("q"), array("i")
    for row in rows:
        addresses.extend(row[:6])
        words.extend(row[6:10])
    for row in rows:
        words.extend(row.by_head(kv_heads))
    packed = torch.frombuffer(bytearray(addresses.tobytes() + words.tobytes()), dtype=torch.int32)
    held = scratch.upload("places", packed, device)
    at, rest = held.split_with_sizes((12 * sessions, (4 + kv_heads) * sessions))
    extents, lengths = rest.split_with_sizes((4 * sessions, kv_heads * sessions))
    return Places(
        at.view(torch.int64).view(sessions, 6),
        extents.view(sessions, 4),
        lengths.view(sessions, kv_heads),
    )
