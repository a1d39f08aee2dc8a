"""The gather and scatter of blocks move bits: every comparison here is for equality."""

from __future__ import annotations

import pytest
import torch
from conftest import needs_kernels
from torch import Tensor

from longmem.codec import Packing, get_codec
from longmem.codec.affine import _next
from longmem.ops.block_gather import RAW, Move, Plan, gather, gather_naive, scatter, scatter_naive
from longmem.ops.rotary import Rotary

DEVICE = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
HEADS = 2
CODECS = ["raw", "bf16", "int8", "int4"]

pytestmark = needs_kernels


def blocks_of(counts, dim: int, dtype: torch.dtype, heads: int = HEADS, seed: int = 0):
    """Random ``[2, H_kv, n, D]``, a few key channels large."""
    draw = torch.Generator().manual_seed(seed)
    made = [torch.randn(2, heads, n, dim, generator=draw) for n in counts]
    for kv in made:
        kv[0, :, :, :3] *= 40
    return [kv.to(dtype).to(DEVICE) for kv in made]


def written(kv: Tensor, payload: str) -> tuple[Tensor, Tensor]:
    """A block's payload, and its values when it is decoded."""
    _, heads, n, dim = kv.shape
    if payload == "raw":
        return kv, kv
    codec = get_codec(payload)
    packing = Packing(heads, dim, codec.bits)
    memory = torch.full((packing.nbytes(n),), 255, dtype=torch.uint8, device=DEVICE)
    if not n:
        return memory, kv
    packed = packing.write(codec.encode(kv.permute(2, 0, 1, 3)), memory)
    return memory, codec.decode(packed, kv.dtype).permute(1, 2, 0, 3)


def targets(rows: int, dim: int, dtype: torch.dtype, heads: int = HEADS) -> tuple[Tensor, Tensor]:
    """Poisoned."""
    nan = torch.full((heads, rows, dim), float("nan"), dtype=dtype, device=DEVICE)
    return nan, nan.clone()


def same(one: Tensor, other: Tensor) -> bool:
    """To the bit, NaN included."""
    return torch.equal(one.view(torch.int16), other.view(torch.int16))


def starts_of(counts, first: int = 3, gap: int = 0) -> list[int]:
    starts = []
    for n in counts:
        starts.append(first)
        first += n + gap
    return starts


def compare(counts, dim, dtype, payload, rotary: Rotary | None = None, gap: int = 0) -> None:
    """Kernel and twin write the same bits, and none elsewhere."""
    made = [written(kv, payload) for kv in blocks_of(counts, dim, dtype)]
    starts = starts_of(counts, gap=gap)
    rows = starts[-1] + counts[-1] + 2
    ranks = list(reversed(range(len(counts))))
    angles = None
    if rotary is not None:
        angles = rotary.angles(torch.arange(len(counts), device=DEVICE) * -128, dtype)
    moves = [
        Move(memory.data_ptr(), start, n, rank)
        for (memory, _), start, n, rank in zip(made, starts, counts, ranks, strict=True)
    ]
    k, v = targets(rows, dim, dtype)
    gather(Plan.of([moves], DEVICE), k, v, payload, rotary and (rotary, angles))
    k_twin, v_twin = targets(rows, dim, dtype)
    turn = None if rotary is None else (rotary, angles, ranks)
    gather_naive([values for _, values in made], starts, k_twin, v_twin, turn)
    assert same(k, k_twin) and same(v, v_twin)


def rotation(dim: int, style: str = "half") -> Rotary:
    inv_freq = 10_000.0 ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return Rotary(inv_freq.to(DEVICE), style)


@pytest.mark.parametrize("payload", CODECS)
@pytest.mark.parametrize(
    ("dim", "dtype"),
    [(64, "bfloat16"), (80, "float16"), (96, "bfloat16"), (128, "bfloat16"), (256, "float16")],
)
def test_blocks_of_ragged_lengths_are_gathered_to_the_bit(payload, dim, dtype):
    counts = [1, 63, 64, 65, 128] if dim == 128 else [1, 17, 0, 33]
    compare(counts, dim, getattr(torch, dtype), payload)


@pytest.mark.parametrize("payload", CODECS)
def test_a_block_of_many_tokens_is_gathered_to_the_bit(payload):
    compare([1000, 1], 128, torch.bfloat16, payload)


@pytest.mark.parametrize("n", [1, 20])
def test_any_number_of_blocks_is_gathered_at_once(n):
    compare([1 + i % 5 for i in range(n)], 64, torch.bfloat16, "raw", gap=1)
    compare([1 + i % 5 for i in range(n)], 64, torch.float16, "int8", gap=2)


@pytest.mark.parametrize("payload", CODECS)
@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_keys_are_turned_by_rank_as_torch_turns_them(payload, style):
    compare([5, 1, 33], 64, torch.bfloat16, payload, rotation(64, style))
    compare([9, 2], 80, torch.float16, payload, rotation(40, style))  # half of the dimensions


@pytest.mark.parametrize("payload", ["bf16", "int8", "int4"])
def test_a_raw_block_among_encoded_ones_is_told_by_its_address(payload):
    encoded, raw = blocks_of([20, 7], 64, torch.float16)
    memory, values = written(encoded, payload)
    moves = [Move(memory.data_ptr(), 0, 20), Move(raw.data_ptr() + RAW, 20, 7)]
    k, v = targets(27, 64, torch.float16)
    gather(Plan.of([moves], DEVICE), k, v, payload)
    assert same(torch.stack((k, v)), torch.cat((values, raw), dim=2).contiguous())


@pytest.mark.parametrize("payload", ["raw", "int4"])
def test_each_head_gathers_blocks_of_its_own(payload):
    made = [written(kv, payload) for kv in blocks_of([6, 1, 40, 9], 64, torch.bfloat16)]
    chosen = [(0, 2, 3), (1,)]
    moves, k_twin, v_twin = [], *targets(60, 64, torch.bfloat16)
    for head, own in enumerate(chosen):
        counts = [made[b][1].shape[2] for b in own]
        starts = starts_of(counts)
        moves.append(
            [Move(made[b][0].data_ptr(), s, n) for b, s, n in zip(own, starts, counts, strict=True)]
        )
        at = slice(head, head + 1)
        gather_naive([made[b][1][:, at] for b in own], starts, k_twin[at], v_twin[at])
    k, v = targets(60, 64, torch.bfloat16)
    gather(Plan.of(moves, DEVICE), k, v, payload)
    assert same(k, k_twin) and same(v, v_twin)


def test_entries_without_tokens_are_skipped_whatever_their_address():
    (kv,) = blocks_of([4], 64, torch.bfloat16)
    for payload in CODECS:
        memory, values = written(kv, payload)
        moves = [Move(0, 0, 0), Move(memory.data_ptr(), 1, 4), Move(8, 2**30, 0)]
        k, v = targets(6, 64, torch.bfloat16)
        gather(Plan.of([moves], DEVICE), k, v, payload)
        assert same(k[:, 1:5].contiguous(), values[0].contiguous()) and k[:, 5].isnan().all()
        gather(Plan.of([[Move(0, 0, 0)]], DEVICE), k, v, payload)
        gather(Plan.of([[]], DEVICE), k, v, payload)


def test_the_device_may_know_less_tokens_than_the_host_allows():
    (kv,) = blocks_of([9], 64, torch.bfloat16)
    plan = Plan.of([[Move(kv.data_ptr(), 0, 9)]], DEVICE)
    plan = Plan(plan.addresses, plan.starts, plan.counts, plan.ranks, most=500)
    k, v = targets(12, 64, torch.bfloat16)
    gather(plan, k, v)
    assert same(k[:, :9].contiguous(), kv[0]) and k[:, 9:].isnan().all()


@pytest.mark.parametrize(("dim", "dtype"), [(64, "bfloat16"), (80, "float16"), (256, "bfloat16")])
def test_scatter_is_the_way_back(dim, dtype):
    dtype, counts = getattr(torch, dtype), [1, 63, 0, 65]
    blocks = blocks_of(counts, dim, dtype)
    starts = starts_of(counts, first=0)
    k, v = targets(sum(counts), dim, dtype)
    moves = [Move(kv.data_ptr(), s, n) for kv, s, n in zip(blocks, starts, counts, strict=True)]
    gather(Plan.of([moves], DEVICE), k, v)
    back, twin = ([torch.full_like(kv, float("nan")) for kv in blocks] for _ in range(2))
    moves = [Move(kv.data_ptr(), s, n) for kv, s, n in zip(back, starts, counts, strict=True)]
    scatter(Plan.of([moves], DEVICE), k, v)
    scatter_naive(k, v, starts, twin)
    assert all(same(one, other) for one, other in zip(back, blocks, strict=True))
    assert all(same(one, other) for one, other in zip(twin, blocks, strict=True))


def test_buffers_with_room_and_offset_are_read_and_written_in_place():
    room = torch.full((HEADS, 40, 64), float("nan"), dtype=torch.bfloat16, device=DEVICE)
    k, v = room[:, 5:25], room.clone()[:, 5:25]
    (kv,) = blocks_of([8], 64, torch.bfloat16)
    gather(Plan.of([[Move(kv.data_ptr(), 10, 8)]], DEVICE), k, v)
    assert same(room[:, 15:23].contiguous(), kv[0])
    assert room[:, :15].isnan().all() and room[:, 23:].isnan().all()
    back = torch.empty_like(kv)
    scatter(Plan.of([[Move(back.data_ptr(), 10, 8)]], DEVICE), k, v)
    assert same(back, kv)


def test_rows_that_do_not_lie_side_by_side_are_refused():
    k, v = targets(8, 64, torch.bfloat16)
    plan = Plan.of([[Move(k.data_ptr(), 0, 1)]], DEVICE)
    with pytest.raises(ValueError, match=r"rows of 8 values lie with strides"):
        gather(plan, k.mT, v.mT)


@pytest.mark.parametrize("name", ["bf16", "int8", "int4"])
def test_groups_encoded_at_once_are_those_encoded_one_by_one(name):
    codec = get_codec(name)
    groups = torch.stack([kv.permute(2, 0, 1, 3) for kv in blocks_of([64] * 3, 64, torch.float16)])
    together = codec.encode(groups)
    for i, group in enumerate(groups):
        alone = codec.encode(group)
        for key, tensor in alone.tensors.items():
            assert torch.equal(together[i].tensors[key], tensor)


@pytest.mark.parametrize("name", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("n", [1, 37])
def test_a_payload_in_one_piece_is_the_payload(name, n):
    codec = get_codec(name)
    (kv,) = blocks_of([n], 80, torch.float16)
    payload = codec.encode(kv.permute(2, 0, 1, 3))
    packing = Packing(HEADS, 80, codec.bits)
    memory = torch.zeros(packing.nbytes(n), dtype=torch.uint8, device=DEVICE)
    packed = packing.write(payload, memory)
    assert packed.nbytes == payload.nbytes == memory.numel() and packed.piece is memory
    for key, tensor in payload.tensors.items():
        assert torch.equal(packed.tensors[key], tensor)
        assert torch.equal(packing.payload(memory.clone(), n).tensors[key], tensor)


@pytest.mark.parametrize("down", [False, True])
def test_the_next_float16_is_the_next_float16(down):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    finite = every[every.isfinite() & (every != (-65504.0 if down else 65504.0))]
    towards = torch.full_like(finite, -65504.0 if down else 65504.0)
    assert same(_next(finite, down), torch.nextafter(finite, towards))
