"""Working sets of decode steps on the device, NaN wherever no token lies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longmem.ops.scratch import Scratch
from longmem.ops.step_attention import Place, Places, StepKeys, upload

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class Session:
    """One session's buffers ``[H_kv, room, D]`` on the device, NaN but where tokens are."""

    far_k: Tensor
    far_v: Tensor
    raw: Tensor
    rot: Tensor
    v: Tensor
    mass: Tensor
    lengths: Tensor
    lo: int
    hi: int

    def place(self, appended: int) -> Place:
        at = [x.data_ptr() for x in (self.far_k, self.far_v, self.raw, self.rot, self.v, self.mass)]
        hi, rooms = self.hi - appended, (self.far_k.shape[1], self.raw.shape[1])
        return Place(*at, rooms[0], self.lo, hi, rooms[1], self.lengths.tolist())

    def keys(self, n_local: int, pending: bool) -> StepKeys:
        """The same for the definition, in float32 on the CPU."""
        edge = max(self.lo, self.hi - n_local)
        first = self.lo if pending else edge
        far = int(self.lengths.max())
        unused = torch.arange(far) >= self.lengths.cpu()[:, None]
        wide = [x.float().cpu() for x in (self.far_k, self.far_v, self.raw, self.rot, self.v)]
        far_k, far_v, raw, rot, v = wide
        return StepKeys(
            far_k[:, :far].nan_to_num().mT,
            far_v[:, :far].nan_to_num(),
            raw[:, first:edge].mT,
            rot[:, edge : self.hi].mT,
            v[:, first : self.hi],
            unused if bool(unused.any()) else None,
        )


def session(
    kv_heads: int, dim: int, dtype: torch.dtype, far: list[int], local: int, lo: int = 3,
    spare: int = 5, seed: int = 0,
) -> Session:  # fmt: skip
    """Random keys and values; all rows that hold no token are NaN."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([far[h % len(far)] for h in range(kv_heads)], dtype=torch.int32)

    def rows(room: int, first: int, stop: list[int]) -> Tensor:
        made = torch.full((kv_heads, room, dim), torch.nan)
        for head, own in enumerate(made):
            n = stop[head % len(stop)] - first
            own[first : first + n] = torch.randn(n, dim, generator=random)
        return made.to(DEVICE, dtype)

    hi = lo + local
    far_k, far_v = (rows(max(far) + spare, 0, lengths.tolist()) for _ in range(2))
    raw, rot, v = (rows(hi + spare, lo, [hi]) for _ in range(3))
    mass = torch.full((kv_heads, hi + spare), torch.nan)
    mass[:, lo:hi] = torch.rand(kv_heads, local, generator=random)
    return Session(far_k, far_v, raw, rot, v, mass.to(DEVICE), lengths.to(DEVICE), lo, hi)


class NanScratch(Scratch):
    """Uninitialised memory is NaN here, so that reading it shows."""

    def take(self, *args):
        found = super().take(*args)
        return found.fill_(torch.nan) if found.is_floating_point() else found


def places_of(sessions: list[Session], appended: int) -> Places:
    rows = [s.place(appended) for s in sessions]
    return upload(rows, sessions[0].raw.shape[0], Scratch(), DEVICE)


def queries(n: int, heads: int, dim: int, dtype: torch.dtype, seed: int = 9) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    both = torch.randn(2, n, heads, dim, generator=random).mul(dim**-0.25)
    return tuple(both.to(DEVICE, dtype))


def columns_of(sessions: list[Session]) -> int:
    return max(int(s.lengths.max()) + s.hi - s.lo for s in sessions)
