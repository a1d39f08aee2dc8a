"""Blocks of a look-up on their way into a working set: from slots, from host memory, decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from longmem.bench.kernels.case import Case
from longmem.bench.kernels.drawing import Draw
from longmem.bench.kernels.size import Size
from longmem.codec import get_codec
from longmem.codec.packing import Packing
from longmem.ops.block_gather import Move, Payloads, Plan, gather, scatter
from longmem.ops.rotary import Angles, Rotary

OP = "block_gather"


def cases(size: Size, dim: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """A working set's blocks as the model made them and by each codec, from the device; raw and int4
    ones from pinned host memory, where there is a GPU; and back into slots."""
    host = torch.device("cpu")
    payloads: tuple[Payloads, ...] = ("raw", "bf16", "int8", "int4")
    sources: list[tuple[Payloads, torch.device]] = [(payload, device) for payload in payloads]
    if device.type == "cuda":
        sources += [("raw", host), ("int4", host)]
    for payload, source in sources:
        yield _gathered(size, payload, source, dim, dtype, device)
    yield _gathered(size, "int4", device, dim, dtype, device, turned=True)
    yield _scattered(size, dim, dtype, device)


def _gathered(
    size: Size, payload: Payloads, source: torch.device, dim: int, dtype: torch.dtype,
    device: torch.device, turned: bool = False,
) -> Case:  # fmt: skip
    kv = Draw(dtype, device)(size.topk, 2, size.kv_heads, size.block_size, dim)
    written = [_written(block, payload, source) for block in kv]
    expected = torch.cat([values for _, values in written], 2)  # [2, H_kv, rows, D]
    memory = [where for where, _ in written]
    linked = sum(where.nbytes for where in memory) if source != device else 0
    n = size.block_size
    plan = _plan(memory, n, device)
    turn = _rotation(size, dim, dtype, device) if turned else None
    if turn is not None:
        rotary, (cos, sin) = turn
        by_row = (cos.repeat_interleave(n, 0), sin.repeat_interleave(n, 0))
        expected[0] = rotary.rotate(expected[0], by_row)
    target = torch.empty_like(expected)
    target_k, target_v = target

    def run(memory: list[Tensor] = memory) -> None:  # the plan holds but their addresses
        gather(plan, target_k, target_v, payload, turn)

    return Case(
        OP, f"{payload} from {'host memory' if linked else 'slots'}" + (", turned" if turned else ""),
        ("gather_turned" if turned else f"gather_{payload}",),
        f"{size.topk} blocks of {n} tokens", dim,
        sum(where.nbytes for where in memory) + target.nbytes, 0, run,
        _equal(run, target, expected), linked,
    )  # fmt: skip


def _scattered(size: Size, dim: int, dtype: torch.dtype, device: torch.device) -> Case:
    n, draw = size.block_size, Draw(dtype, device)
    rows = draw(2, size.kv_heads, size.topk * n, dim)
    slots = draw(size.topk, 2, size.kv_heads, n, dim)
    plan = _plan(list(slots), n, device)
    expected = torch.stack([rows[:, :, i * n : (i + 1) * n] for i in range(size.topk)])

    def run() -> None:
        scatter(plan, rows[0], rows[1])

    return Case(
        OP, "into slots", ("scatter_raw",), f"{size.topk} blocks of {n} tokens", dim,
        rows.nbytes + slots.nbytes, 0, run, _equal(run, slots, expected),
    )  # fmt: skip


def _written(kv: Tensor, payload: Payloads, source: torch.device) -> tuple[Tensor, Tensor]:
    """A block's payload where it is read from, and what it is decoded to: ``[2, H_kv, n, D]``."""
    if payload == "raw":
        return _placed(kv.contiguous(), source), kv
    _, heads, n, dim = kv.shape
    codec = get_codec(payload)
    assert codec is not None
    packing = Packing(heads, dim, codec.bits)
    memory = torch.zeros(packing.nbytes(n), dtype=torch.uint8, device=kv.device)
    packed = packing.write(codec.encode(kv.permute(2, 0, 1, 3)), memory)
    return _placed(memory, source), codec.decode(packed, kv.dtype).permute(1, 2, 0, 3)


def _placed(memory: Tensor, source: torch.device) -> Tensor:
    """On the device it lies on, or in pinned host memory."""
    return memory if memory.device == source else memory.to(source).pin_memory()


def _plan(memory: list[Tensor], tokens: int, device: torch.device) -> Plan:
    moves = [Move(where.data_ptr(), i * tokens, tokens, rank=i) for i, where in enumerate(memory)]
    return Plan.of([moves], device)


def _rotation(
    size: Size, dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[Rotary, Angles]:
    """How keys are turned by their block's rank: cos and sin ``[ranks, D / 2]``."""
    pairs = torch.arange(0, dim, 2, dtype=torch.float64, device=device)
    rotary = Rotary(500_000.0 ** (-pairs / dim), "half")
    positions = torch.arange(size.topk, device=device) * -size.block_size
    return rotary, rotary.angles(positions, dtype)


def _equal(run: Callable[[], None], written: Tensor, expected: Tensor) -> Callable[[], float]:
    """0 where what is written is what is expected, to the bit; else infinity."""

    def error() -> float:
        written.fill_(torch.nan)
        run()
        return 0.0 if torch.equal(written, expected) else float("inf")

    return error
