"""Decode steps: single tokens of one session and of many, each over its own working set."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from longmem.bench.kernels.case import Case
from longmem.bench.kernels.drawing import ROUNDING, SUMS, Draw, apart, by_definition
from longmem.bench.kernels.size import Size
from longmem.bench.kernels.spoiling import spoilt
from longmem.ops.rotary import Angles, Rotary
from longmem.ops.scratch import Scratch
from longmem.ops.step_attention import Place, Places, Stepped, upload
from longmem.ops.working_set_attention import attend_blocked, attend_naive


def cases(size: Size, dim: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """A step of one session, of many, of many with attention sums; and a token taken in."""
    for sessions, sums in ((1, False), (size.sessions, False), (size.sessions, True)):
        yield _Sessions(size, sessions, dim, dtype, device).attended(sums)
    yield _Sessions(size, size.sessions, dim, dtype, device).taken_in()


class _Sessions:
    """Working sets of S sessions in one layer, full, with half a block of pending tokens."""

    def __init__(
        self, size: Size, sessions: int, dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        draw = Draw(dtype, device)
        self.size, self.n, self.device = size, sessions, device
        self.tokens = size.local + size.block_size // 2
        self.far = draw(sessions, 2, size.kv_heads, size.far, dim)
        self.local = draw(sessions, 3, size.kv_heads, self.tokens + 1, dim)  # raw, rot, v
        self.mass = torch.zeros(sessions, size.kv_heads, self.tokens + 1, device=device)
        self.q = draw(2, sessions, size.heads, dim)
        self.kv = draw(2, sessions, size.kv_heads, dim)
        self.scratch, self.scaling = Scratch(), dim**-0.5
        self.places = self._places()

    def _places(self) -> Places:
        rows = []
        for s in range(self.n):
            held = (*self.far[s], *self.local[s], self.mass[s])
            far_k, far_v, raw, rot, v, mass = (each.data_ptr() for each in held)
            length, last = self.size.far, self.tokens - 1
            rows.append(
                Place(far_k, far_v, raw, rot, v, mass, length, 0, last, self.tokens + 1, length)
            )
        return upload(rows, self.size.kv_heads, self.scratch, self.device)

    def _rotation(self) -> tuple[Rotary, Angles]:
        """How queries and keys are turned; cos and sin ``[S, 2, 1, D / 2]`` at the sessions' positions and
        at n_local."""
        dim = self.q.shape[-1]
        pairs = torch.arange(0, dim, 2, dtype=torch.float64, device=self.device)
        rotary = Rotary(500_000.0 ** (-pairs / dim), "half")
        positions = torch.arange(self.n, device=self.device) * 1_009 + self.tokens
        at = torch.stack((positions, torch.full_like(positions, self.size.local)), 1)
        cos, sin = rotary.angles(at.flatten(), self.q.dtype)
        return rotary, (cos.view(self.n, 2, 1, -1), sin.view(self.n, 2, 1, -1))

    def attended(self, sums: bool) -> Case:
        """The attention of a step; with `sums`, weights are added up by key."""
        from longmem.ops.step_attention.stepping import attend_places

        columns = self.size.far + self.tokens
        q_near, q_far = self.q

        def run(scratch: Scratch = self.scratch) -> Stepped:
            return attend_places(
                q_near, q_far, self.places, n_local=self.size.local, pending=True, columns=columns,
                scaling=self.scaling, mass_of="attention" if sums else None, want_lse=True,
                scratch=scratch,
            )  # fmt: skip

        read = self.n * self.size.kv_heads * columns * self.kv.shape[-1]
        return Case(
            "step_attention", f"decode, {self.n} session(s)" + (", sums" if sums else ""),
            ("attend", "finish"), f"{columns:,} keys each", self.kv.shape[-1],
            2 * read * self.q.element_size() + 3 * self.q[0].nbytes,
            4 * read * (self.size.heads // self.size.kv_heads), run, self._error(run, sums),
        )  # fmt: skip

    def _error(self, run: Callable[[Scratch], Stepped], sums: bool) -> Callable[[], float]:
        def error() -> float:
            self.mass.zero_()
            with spoilt():
                done, worst = run(Scratch()), 0.0
            for s in range(self.n):
                out, lse, mass = self._expected(s)
                worst = max(worst, apart(done.out[s], out, ROUNDING[self.q.dtype]))
                assert done.lse is not None
                worst = max(worst, apart(done.lse[s], lse, SUMS))
                if sums:
                    worst = max(worst, apart(self.mass[s, :, : self.tokens], mass, 4 * SUMS))
            return worst

        return error

    def _expected(self, s: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of one session, in float32; sums of pending tokens, which get none, are zero."""
        q, local = self.q[:, s, :, None].float(), self.local[s, :, :, : self.tokens].float()
        rows, naive = [*q, *self.far[s].float(), *local], by_definition(self.size)
        if naive:
            rows = [each.cpu() for each in rows]
        attend = attend_naive if naive else attend_blocked
        done = attend(*rows, n_local=self.size.local, scaling=self.scaling, want_lse=True)
        assert done.lse is not None and done.mass is not None
        done.mass[:, : self.tokens - self.size.local] = 0
        return done.out[:, 0], done.lse[:, 0], done.mass

    def taken_in(self) -> Case:
        """A token's query turned, its key and value appended behind the others."""
        from longmem.ops.step_attention.stepping import take_in

        near, far = torch.empty_like(self.q[0]), torch.empty_like(self.q[0])
        (k, v), q = self.kv, self.q[0]
        rotary, (cos, sin) = self._rotation()

        def run() -> None:
            take_in(q, k, v, (cos, sin), self.places, near, far)

        def turned(x: Tensor, which: int) -> Tensor:
            return rotary.rotate(x, (cos[:, which], sin[:, which]))

        def error() -> float:
            near.fill_(torch.nan)
            far.fill_(torch.nan)
            run()
            raw, rot, values = self.local[:, :, :, self.tokens - 1].unbind(1)
            same = [(near, turned(q, 0)), (far, turned(q, 1))]
            same += [(raw, k), (rot, turned(k, 0)), (values, v)]
            return 0.0 if all(torch.equal(got, wanted) for got, wanted in same) else float("inf")

        return Case(
            "step_attention", f"take in, {self.n} session(s)", ("take_in",), "1 token each",
            k.shape[-1], 3 * q.nbytes + 5 * k.nbytes, 0, run, error,
        )  # fmt: skip
