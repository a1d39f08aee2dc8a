"""The choice: the k best of every line of scores, exactly, without sorting."""

from __future__ import annotations

import triton
import triton.language as tl

from longmem.ops.block_scoring.kernel import candidates_of


@triton.jit(do_not_specialize=["columns", "per_session", "n", "k"])  # type: ignore[untyped-decorator]  # triton gives none
def select_kernel(  # type: ignore[no-untyped-def]  # triton gives types
    scores,  # [lines, columns] float32
    table,  # [S, 6] int64: how many of a line there are; lines / S lines have one row. Unused: N_OF = "all"
    names,  # [lines, columns] int32: what is chosen; its ids, -1: nothing. Unused: N_OF is not "names"
    ids,  # [lines, parts, k] int32, out: ascending, -1 behind the last
    best,  # [lines, parts, k] float32, out: their scores. Unused: not KEEP
    columns,
    per_session,  # lines of a session
    n,  # of a line: N_OF = "all"
    k,
    N_OF: tl.constexpr,  # "table", "names" or "all"
    KEEP: tl.constexpr,
    WIDE: tl.constexpr,  # columns of a program
    K_PAD: tl.constexpr,
):
    line, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    i = part * WIDE + tl.arange(0, WIDE)
    first = 0
    if N_OF == "table":
        session = line // per_session
        n, _ = candidates_of(table, session)
        columns = columns // 16 * 16  # it is a multiple: told so, threads load 16 bytes at once
        first = tl.load(table + session * 6 + 3).to(tl.int32)
    alive = i < n
    name = first + i
    if N_OF == "names":
        name = tl.load(names + line * columns + i, mask=i < columns, other=-1)
        alive = (i < columns) & (name >= 0)
    value = tl.load(scores + line * columns + i, mask=i < columns, other=0.0)
    order = _ordered(value, alive)
    wanted = tl.minimum(tl.sum(alive.to(tl.int32)), k)
    least = _kth_largest(order, wanted)
    above, equal = alive & (order > least), alive & (order == least)
    older = tl.cumsum(equal.to(tl.int32), 0) <= wanted - tl.sum(above.to(tl.int32))
    taken = above | (equal & older)
    place = tl.cumsum(taken.to(tl.int32), 0) - 1
    out = (line * parts + part) * k
    tl.store(ids + out + place, name, mask=taken)
    rest = tl.arange(0, K_PAD)
    tl.store(ids + out + rest, tl.full([K_PAD], -1, tl.int32), mask=(rest >= wanted) & (rest < k))
    if KEEP:
        tl.store(best + out + place, value, mask=taken)


@triton.jit
def _ordered(value, alive):  # type: ignore[no-untyped-def]  # triton gives types
    """int32 that are ordered as the floats are, the least there is where there is no value."""
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)  # -0 equals 0
    order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(alive, order, -2147483648)


@triton.jit
def _kth_largest(order, k):  # type: ignore[no-untyped-def]  # triton gives types
    """The largest t of which `k` values are t or more: built from the highest bit down, two bits at a
    time, whose three counts (below 2^20) are summed as one number."""
    t = tl.where(tl.sum((order >= 0).to(tl.int32)) >= k, 0, -2147483648)
    for step in range(15):
        low = 29 - 2 * step
        one, two, three = t | (1 << low), t | (2 << low), t | (3 << low)
        counts = (order >= one).to(tl.int64)
        counts += (order >= two).to(tl.int64) << 20
        counts += (order >= three).to(tl.int64) << 40
        total = tl.sum(counts)
        t = tl.where((total & 0xFFFFF) >= k, one, t)
        t = tl.where(((total >> 20) & 0xFFFFF) >= k, two, t)
        t = tl.where((total >> 40) >= k, three, t)
    return tl.where(tl.sum((order >= (t | 1)).to(tl.int32)) >= k, t | 1, t)
