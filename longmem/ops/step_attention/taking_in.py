"""A step's queries and keys are rotated, and its keys and values appended, in one kernel."""

# Triton gives the types of what it compiles.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from longmem.ops.kernels.rounded import rounded


@triton.jit
def turned(x, partner, cos, sin, HALF: tl.constexpr, INTERLEAVED: tl.constexpr, PAD: tl.constexpr):
    """`x` ``[n, PAD]`` rotated, each value of a pair beside its `partner`.

    Products are rounded before they are added, as `Rotary.rotate` does it: a key that is written here
    and one that is rotated anew after a resume are the same bits.
    """
    d = tl.arange(0, PAD)
    if INTERLEAVED:
        at, sign = d // 2, tl.where(d % 2 == 0, -1.0, 1.0)
    else:
        at, sign = d % HALF, tl.where(d < HALF, -1.0, 1.0)
    rotated = d < 2 * HALF
    c = tl.load(cos + at, rotated, 0.0).to(tl.float32)[None]
    s = tl.load(sin + at, rotated, 0.0).to(tl.float32)[None]
    straight = rounded(x.to(tl.float32) * c, x.dtype).to(tl.float32)
    crossed = rounded(partner.to(tl.float32) * s, x.dtype).to(tl.float32)
    found = rounded(straight + sign[None] * crossed, x.dtype)
    return tl.where(rotated[None], found, x)


@triton.jit
def row_at(entry, row, element: tl.constexpr, DIM: tl.constexpr):
    """The first value of a row of the buffer whose address is at `entry`. Rows begin at multiples of 16
    bytes, which a table cannot say; told so, threads write two values at once."""
    return tl.multiple_of(tl.load(entry).to(tl.pointer_type(element)) + row * DIM, 16)


@triton.jit
def take_in_token(
    q,
    k,
    v,
    q_session,
    q_head,
    k_session,
    k_head,
    v_session,
    v_head,
    cos,
    sin,
    addresses,
    extents,
    q_near,
    q_far,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    PAD: tl.constexpr,
    HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """One KV head of one session: its queries into ``q_near``, ``q_far [S, H, DIM]``, its key and value
    into row hi of the session's buffers. HALF pairs are rotated, 0: none are."""
    session, head = tl.program_id(0), tl.program_id(1)
    g, d = tl.arange(0, ROWS)[:, None], tl.arange(0, PAD)[None]
    partner = d ^ 1 if INTERLEAVED else tl.where(d < HALF, d + HALF, d - HALF)
    inside, paired = (g < GROUP) & (d < DIM), (g < GROUP) & (d < 2 * HALF)
    from_q = q + session.to(tl.int64) * q_session + (head * GROUP + g) * q_head
    queries = tl.load(from_q + d, inside, 0.0)
    to_q = ((session * KV_HEADS + head) * GROUP + g) * DIM + d
    if HALF:
        near_cos, near_sin = cos + session * (2 * HALF), sin + session * (2 * HALF)
        other = tl.load(from_q + partner, paired, 0.0)
        near = turned(queries, other, near_cos, near_sin, HALF, INTERLEAVED, PAD)
        far = turned(queries, other, near_cos + HALF, near_sin + HALF, HALF, INTERLEAVED, PAD)
        tl.store(q_near + to_q, near, inside)
        tl.store(q_far + to_q, far, inside)
    else:
        tl.store(q_near + to_q, queries, inside)
        tl.store(q_far + to_q, queries, inside)

    element = k.dtype.element_ty
    hi, room = tl.load(extents + session * 4 + 2), tl.load(extents + session * 4 + 3)
    row = head.to(tl.int64) * room + hi
    table = addresses + session * 6
    raw = row_at(table + 2, row, element, DIM)
    values = row_at(table + 4, row, element, DIM)
    from_k = k + session.to(tl.int64) * k_session + head * k_head
    key = tl.load(from_k + d, d < DIM, 0.0)
    tl.store(raw + d, key, d < DIM)
    if HALF:
        rot = row_at(table + 3, row, element, DIM)
        other = tl.load(from_k + partner, d < 2 * HALF, 0.0)
        near_key = turned(key, other, near_cos, near_sin, HALF, INTERLEAVED, PAD)
        tl.store(rot + d, near_key, d < DIM)
    from_v = v + session.to(tl.int64) * v_session + head * v_head
    tl.store(values + d, tl.load(from_v + d, d < DIM, 0.0), d < DIM)
    mass = tl.load(table + 5)
    if mass != 0:
        tl.store(mass.to(tl.pointer_type(tl.float32)) + row, 0.0)
