"""Decode steps by kernels in a session's memory: what they write, and what a model makes of it."""

from __future__ import annotations

import os

import pytest
import torch
from step_sessions import DEVICE, NanScratch, Session, places_of, session
from tiny import attached, new_memory, read_in_passes, tokens
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from longmem.attention import forward
from longmem.config import MemoryConfig
from longmem.memory import ForwardPass, ReadSpan, Scratch, SessionMemory
from longmem.ops.kernels.configs import Launch, tried
from longmem.ops.rotary import Rotary

if DEVICE.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("kernels need a GPU or Triton's interpreter", allow_module_level=True)
pytest.importorskip("triton")

from longmem.ops.step_attention.stepping import take_in

SMALL = MemoryConfig(
    n_init=4, n_local=24, block_size=8, topk=3, repr_topk=2, lookup_span=16, stride=4
)
ROUNDED = 0.06
"""Of logits of up to 4: the torch form rounds scores and weights to bfloat16, the kernels weights alone,
and what follows rounds again."""


@pytest.fixture(autouse=True)
def few_shares():
    with tried("step_attention", "attend", Launch({"PROGRAMS": 2, "BLOCK_N": 32}, 4, 2)):
        yield


# H, H_kv, D, dtype, rotated dimensions, style
TURNS = [
    (4, 2, 64, torch.bfloat16, 64, "half"),
    (8, 1, 80, torch.float16, 32, "half"),
    (2, 2, 96, torch.bfloat16, 96, "interleaved"),
    (3, 1, 128, torch.bfloat16, 64, "interleaved"),
    (4, 1, 256, torch.float16, 256, "half"),
    (2, 1, 64, torch.bfloat16, 0, "half"),
]


@pytest.mark.parametrize(("heads", "kv_heads", "dim", "dtype", "turned", "style"), TURNS)
def test_tokens_are_rotated_and_appended_as_torch_does_it_bit_for_bit(
    heads, kv_heads, dim, dtype, turned, style
):
    positions, n_local = torch.tensor([7, 100_003]), 50
    sessions = [session(kv_heads, dim, dtype, [0], n, seed=n) for n in (5, 33)]
    before = [(own.raw.clone(), own.rot.clone(), own.v.clone()) for own in sessions]
    packed = torch.randn(2, heads + 2 * kv_heads, dim).to(
        DEVICE, dtype
    )  # as one projection gives it
    q, k, v = packed.split((heads, kv_heads, kv_heads), 1)
    rotary, angles = None, None
    if turned:
        inv_freq = 10_000 ** -(torch.arange(0, turned, 2, dtype=torch.float64) / turned)
        rotary = Rotary(inv_freq, style)
        at = torch.stack((positions, torch.full_like(positions, n_local)), 1).flatten()
        angles = tuple(x.view(2, 2, 1, -1).to(DEVICE) for x in rotary.angles(at, dtype))
    near, far = (torch.full_like(q, torch.nan).contiguous() for _ in range(2))
    take_in(q, k, v, angles, places_of(sessions, 0), near, far, style=style)

    def rotated(x: torch.Tensor, which: int) -> torch.Tensor:
        if rotary is None or angles is None:
            return x
        return rotary.rotate(x, (angles[0][:, which], angles[1][:, which]))

    assert torch.equal(near, rotated(q, 0)) and torch.equal(far, rotated(q, 1))
    for s, own in enumerate(sessions):
        assert torch.equal(own.raw[:, own.hi], k[s]) and torch.equal(own.v[:, own.hi], v[s])
        if turned:
            assert torch.equal(own.rot[:, own.hi], rotated(k, 0)[s])
        assert not own.mass[:, own.hi].any()
        for now, then in zip((own.raw, own.rot, own.v), before[s], strict=True):
            same = _others(now, own), _others(then, own)
            torch.testing.assert_close(*same, atol=0, rtol=0, equal_nan=True)


def _others(x: torch.Tensor, own: Session) -> torch.Tensor:
    return torch.cat((x[:, : own.hi], x[:, own.hi + 1 :]), 1)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
            vocab_size=200, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=1, head_dim=64, initializer_range=0.1,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(DEVICE, torch.bfloat16).eval()


@pytest.fixture(scope="module")
def routed():
    return attached(llama())


def decode(routed, config: MemoryConfig, kernels: str, lengths: tuple[int, ...]) -> torch.Tensor:
    """Logits ``[steps, S, V]`` of four steps; sessions look up at their own times."""
    model, info = routed
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LONGMEM_KERNELS", kernels)
        memories = [new_memory(info, config) for _ in lengths]
        for memory, n in zip(memories, lengths, strict=True):
            read_in_passes(model, memory, tokens(n, seed=n), span=16, spans_per_pass=4)
        scratch, found = NanScratch(), []
        for i in range(4):
            refreshes = [(i + s) % 3 == 0 for s in range(len(lengths))]
            found.append(step(model, memories, [(7 * i) % 200] * len(lengths), refreshes, scratch))
    return torch.stack(found)


class NoWaiting(TorchDispatchMode):
    """Refuses what would make the host wait for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = (
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.is_nonzero,
            torch.ops.aten.nonzero,
        )
        assert func.overloadpacket not in waits
        return func(*args, **(kwargs or {}))


def test_a_step_by_kernels_between_look_ups_waits_for_nothing(routed, monkeypatch):
    model, info = routed
    monkeypatch.setenv("LONGMEM_KERNELS", "interpret")
    memories, scratch = [new_memory(info, SMALL) for _ in range(2)], Scratch()
    for _ in range(2):
        step(model, memories, [3, 5], [False, False], scratch)
    held = scratch.bytes
    with NoWaiting():
        step(model, memories, [4, 6], [False, False], scratch)
    assert scratch.bytes == held
    with pytest.raises(AssertionError), NoWaiting():
        torch.ones(1, device=DEVICE).item()


def step(model, memories: list[SessionMemory], token, refreshes, scratch) -> torch.Tensor:
    spans = [[ReadSpan(1, int(r))] for r in refreshes]
    parts = [(m, m.prepare(span)) for m, span in zip(memories, spans, strict=True)]
    run = ForwardPass(parts, scratch)
    ids = torch.tensor([token], device=DEVICE)
    logits = forward(model, ids, run, torch.arange(len(memories), device=DEVICE))
    run.finish()
    return logits.clone()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"repr_by": "logits", "selection": "kv_head"},
        {"lookup": "all"},
        {"window": "segment", "topk": 0},
    ],
)
def test_sessions_decoded_by_kernels_are_decoded_as_without(routed, changes):
    config = SMALL.replace(**changes)
    by_torch = decode(routed, config, "off", (22, 61))
    by_kernels = decode(routed, config, "interpret", (22, 61))
    assert by_torch.abs().max() > 1
    assert (by_kernels - by_torch).abs().max() < ROUNDED
