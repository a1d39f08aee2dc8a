"""Prefill: a segment of new tokens over its working set, and a short one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from longmem.bench.kernels.case import Case
from longmem.bench.kernels.drawing import ROUNDING, SUMS, Draw, apart, by_definition
from longmem.bench.kernels.size import Size
from longmem.bench.kernels.spoiling import spoilt
from longmem.ops.kernels import launch_of
from longmem.ops.working_set_attention import (
    Attended,
    MassOf,
    attend,
    attend_blocked,
    attend_naive,
)

_FEW = 8
"""Tokens of a short segment."""
_SUMS: tuple[tuple[MassOf | None, float | None], ...] = (
    (None, None),
    ("attention", None),
    ("attention", 30.0),
    ("logits", None),
)
"""What is summed by key, and the cap of the logits."""


def cases(size: Size, dim: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """A segment, with the sums that its keys are given; a part of one; a few tokens late in a session,
    and early in one."""
    whole, few = size.segment, min(_FEW, size.segment)
    for mass_of, softcap in _SUMS:
        yield _segment(size, whole, mass_of, softcap, dim, dtype, device)
    yield _segment(size, -(-whole // 8), None, None, dim, dtype, device)
    yield _segment(size, few, None, None, dim, dtype, device)
    yield _segment(replace(size, local=0, topk=0), few, None, None, dim, dtype, device)


def launched(
    size: Size, tokens: int, mass_of: MassOf | None, softcap: float | None, dim: int, device: torch.device
) -> tuple[str, ...]:  # fmt: skip
    """Names of the kernels that a segment goes through."""
    from longmem.ops.working_set_attention.fast import launch_for, splits_of

    rows = tokens * (size.heads // size.kv_heads)
    name = launch_for(rows, device)
    how = launch_of("working_set_attention", name, dim)
    programs = -(-rows // how.blocks["TILE_Q"]) * size.kv_heads
    split = splits_of(programs, size.far, size.local + tokens, how) > 1
    names = (f"{name}_split", "combine") if split else (name,)
    if mass_of == "logits":
        return (*names, "sum_queries", "follower_logits")
    capped = "attention_mass" if softcap is None else "attention_mass_capped"
    return (*names, capped) if mass_of else names


def _segment(
    size: Size, tokens: int, mass_of: MassOf | None, softcap: float | None, dim: int,
    dtype: torch.dtype, device: torch.device,
) -> Case:  # fmt: skip
    draw = Draw(dtype, device)
    far, local, window = size.far, size.local + tokens, max(size.local, tokens)
    rows = [draw(size.heads, tokens, dim) for _ in range(2)]
    rows += [draw(size.kv_heads, far, dim) for _ in range(2)]
    rows += [draw(size.kv_heads, local, dim) for _ in range(3)]

    def run() -> Attended:
        return attend(
            *rows,
            n_local=window,
            scaling=dim**-0.5,
            mass_of=mass_of,
            softcap=softcap,
            want_lse=True,
        )

    def error() -> float:
        naive = by_definition(size)
        wide = [each.to("cpu" if naive else device, torch.float32) for each in rows]
        expected = (attend_naive if naive else attend_blocked)(
            *wide,
            n_local=window,
            scaling=dim**-0.5,
            mass_of=mass_of,
            softcap=softcap,
            want_lse=True,
        )
        with spoilt():
            done = run()
        assert done.lse is not None and expected.lse is not None
        worst = [
            apart(done.out, expected.out, ROUNDING[dtype]),
            apart(done.lse, expected.lse, SUMS),
        ]
        if done.mass is not None and expected.mass is not None:
            worst.append(apart(done.mass, expected.mass, 4 * SUMS))
        return max(worst)

    seen = tokens * (far + size.local) + tokens * (tokens + 1) // 2
    name = f"{tokens} tokens" + (f", sums of {mass_of}" if mass_of else "")
    name += ", capped" if softcap else ""
    return Case(
        "working_set_attention", name, launched(size, tokens, mass_of, softcap, dim, device),
        f"{far:,} + {local:,} keys", dim,
        2 * size.kv_heads * (far + local) * dim * dtype.itemsize + 3 * rows[0].nbytes,
        4 * size.heads * seen * dim, run, error,
    )  # fmt: skip
