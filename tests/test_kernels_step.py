"""The attention kernels of a decode step: against the definition and the torch form, alone and together."""

from __future__ import annotations

import os

import pytest
import torch
from step_sessions import DEVICE, NanScratch, Session, columns_of, places_of, queries, session

from longmem.ops.kernels.configs import Launch, launches, tried
from longmem.ops.scratch import Scratch
from longmem.ops.step_attention import StepKeys, Stepped, attend_naive, attend_steps

if DEVICE.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("kernels need a GPU or Triton's interpreter", allow_module_level=True)
pytest.importorskip("triton")

from longmem.ops.step_attention.stepping import attend_places

WEIGHT_ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Weights are rounded to the values' type before they are multiplied, and so is the output: each is off
by half of this share at most, and what is left of that in a sum of values of about 1 is no more."""
SUMS = 2e-5
"""Logits, weights and sums stay in float32; their order of summation differs from the definition's."""
TORCH_ROUNDING = {torch.bfloat16: 0.05, torch.float16: 0.01}
"""The torch form rounds the logits, too, which are up to 4 here: weights are off by that much relatively."""


@pytest.fixture(autouse=True)
def few_shares():
    """Small tiles and few shares: ragged at small sizes, and quick in the interpreter."""
    with tried("step_attention", "attend", Launch({"PROGRAMS": 6, "BLOCK_N": 32}, 4, 2)):
        yield


# H, H_kv, D, dtype, n_local, per session (far lengths by head, local tokens)
CASES = [
    (2, 2, 64, torch.bfloat16, 40, [([0], 1)]),
    (4, 1, 64, torch.float16, 64, [([65], 64), ([0], 65), ([63, 1], 130)]),
    (8, 1, 128, torch.bfloat16, 33, [([1], 33), ([130], 97)]),
    (8, 2, 128, torch.float16, 7, [([0, 70], 90)]),
    (3, 1, 80, torch.bfloat16, 50, [([20], 63), ([7], 2)]),
    (4, 2, 96, torch.float16, 1, [([33, 9], 12)]),
    (2, 1, 256, torch.bfloat16, 30, [([40], 64), ([0], 31)]),
    (17, 1, 64, torch.bfloat16, 16, [([5], 20)]),
    (4, 1, 128, torch.bfloat16, 300, [([361], 639)]),
]
SETTINGS = [
    dict(pending=True, mass_of=None, softcap=None, sinks=False, appended=1),
    dict(pending=True, mass_of="attention", softcap=None, sinks=True, appended=0),
    dict(pending=False, mass_of="logits", softcap=5.0, sinks=False, appended=1),
    dict(pending=False, mass_of="attention", softcap=5.0, sinks=True, appended=1),
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("case", CASES, ids=[str(i) for i in range(len(CASES))])
def test_a_step_by_kernels_equals_the_definition(case, settings):
    heads, kv_heads, dim, dtype, n_local, sizes = case
    group = heads // kv_heads
    sessions = [session(kv_heads, dim, dtype, *size, seed=i) for i, size in enumerate(sizes)]
    q_near, q_far = queries(len(sizes), heads, dim, dtype)
    sinks = torch.randn(heads).to(dtype) if settings["sinks"] else None
    keys = [s.keys(n_local, settings["pending"]) for s in sessions]
    common = dict(scaling=0.4, softcap=settings["softcap"], mass_of=settings["mass_of"])
    expected = attend_naive(
        q_near.float().cpu(), q_far.float().cpu(), keys, sinks=sinks, want_lse=True, **common
    )
    before = [s.mass.cpu().clone() for s in sessions]
    got = attend_places(
        q_near, q_far, places_of(sessions, settings["appended"]),
        n_local=n_local, pending=settings["pending"], columns=columns_of(sessions),
        sinks=None if sinks is None else sinks.to(DEVICE), want_lse=True, want_weights=True,
        scratch=NanScratch(), appended=settings["appended"], **common,
    )  # fmt: skip
    assert got.out.shape == (len(sizes), heads, dim) and got.out.dtype == dtype
    near = WEIGHT_ROUNDING[dtype]
    torch.testing.assert_close(got.out.float().cpu(), expected.out, atol=2 * near, rtol=2 * near)
    torch.testing.assert_close(got.lse.cpu(), expected.lse, atol=SUMS, rtol=SUMS)
    for s, own in enumerate(sessions):
        far, local = int(own.lengths.max()), own.hi - own.lo
        edge = max(0, local - n_local)
        weights, wanted = got.weights[s].cpu(), torch.zeros(kv_heads, group, got.weights.shape[3])
        of = expected.weights[s, ..., : sum(keys[s].lengths)]
        wanted[..., :far] = of[..., :far]
        wanted[..., far + local - of.shape[2] + far : far + local] = of[..., far:]
        torch.testing.assert_close(weights, wanted, atol=SUMS, rtol=SUMS)
        grown = before[s].clone()
        if expected.mass is not None:
            of_near = expected.mass[s, :, sum(keys[s].lengths[:2]) : sum(keys[s].lengths)]
            grown[:, own.lo + edge : own.hi] += of_near
        torch.testing.assert_close(
            own.mass.cpu(), grown, atol=SUMS * group, rtol=SUMS, equal_nan=True
        )


def step(sessions: list[Session], q: tuple[torch.Tensor, ...], **changes) -> Stepped:
    settings = dict(
        n_local=33, pending=True, columns=columns_of(sessions), scaling=0.4, softcap=5.0,
        mass_of="attention", want_lse=True, want_weights=True, scratch=NanScratch(), appended=0,
    )  # fmt: skip
    return attend_places(*q, places_of(sessions, 0), **{**settings, **changes})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_a_step_by_kernels_equals_the_torch_form(dtype, softcap):
    sizes = [([40], 50), ([0], 20), ([17], 34)]
    sessions = [session(2, 64, dtype, *size, seed=i) for i, size in enumerate(sizes)]
    q = queries(3, 8, 64, dtype)
    keys = [StepKeys(*(x.to(DEVICE, dtype) for x in own.keys(33, True)[:5])) for own in sessions]
    settings = dict(scaling=0.4, softcap=softcap, want_lse=True)
    expected = attend_steps(*q, keys, Scratch(), **settings)
    got = step(sessions, q, want_weights=False, **settings)
    close = dict(atol=TORCH_ROUNDING[dtype], rtol=TORCH_ROUNDING[dtype])
    torch.testing.assert_close(got.out, expected.out, **close)
    torch.testing.assert_close(got.lse, expected.lse, **close)


@pytest.mark.parametrize("mass_of", ["attention", "logits"])
def test_a_session_gets_the_same_bits_alone_packed_elsewhere_and_again(mass_of):
    sizes = [([40, 7], 50), ([0], 90), ([70], 34)]

    def made(**where) -> list[Session]:
        return [
            session(2, 64, torch.bfloat16, *size, seed=i, **where) for i, size in enumerate(sizes)
        ]

    packed, moved, q = made(), made(lo=20, spare=77), queries(3, 8, 64, torch.bfloat16)
    expected = step(packed, q, mass_of=mass_of)
    others = step(moved, q, mass_of=mass_of, columns=columns_of(moved) + 300)
    n = columns_of(packed)
    assert torch.equal(others.out, expected.out) and torch.equal(others.lse, expected.lse)
    assert torch.equal(others.weights[..., :n], expected.weights)
    for s, (alone, own, other) in enumerate(zip(made(), packed, moved, strict=True)):
        single = step([alone], (q[0][s : s + 1], q[1][s : s + 1]), mass_of=mass_of)
        assert torch.equal(single.out[0], expected.out[s])
        assert torch.equal(single.lse[0], expected.lse[s])
        assert torch.equal(single.weights[0], expected.weights[s, ..., : columns_of([alone])])
        grown = own.mass[:, own.lo : own.hi]
        assert torch.equal(alone.mass[:, alone.lo : alone.hi], grown)
        assert torch.equal(other.mass[:, other.lo : other.hi], grown)
    again = step(packed, q, mass_of=mass_of)
    assert torch.equal(again.out, expected.out) and torch.equal(again.weights, expected.weights)


def test_the_pinned_launch_serves_more_shares_than_there_are_tiles():
    sessions, q = [session(2, 128, torch.bfloat16, [70], 150)], queries(1, 4, 128, torch.bfloat16)
    few = step(sessions, q)
    with tried("step_attention", "attend", pinned(128)):
        many = step(sessions, q)
    torch.testing.assert_close(many.lse, few.lse, atol=SUMS, rtol=SUMS)
    torch.testing.assert_close(many.weights, few.weights, atol=SUMS, rtol=SUMS)
    close = dict(atol=2 * WEIGHT_ROUNDING[torch.bfloat16], rtol=0)
    torch.testing.assert_close(many.out.float(), few.out.float(), **close)


def test_a_session_without_a_key_gets_zeros_and_disturbs_nobody():
    q, other = queries(2, 4, 64, torch.bfloat16), session(2, 64, torch.bfloat16, [9], 40)
    empty = session(2, 64, torch.bfloat16, [0], 0, lo=0)
    got, alone = step([empty, other], q), step([other], (q[0][1:], q[1][1:]))
    assert not got.out[0].any() and (got.lse[0] == -torch.inf).all() and not got.weights[0].any()
    assert torch.equal(got.out[1], alone.out[0])
    sunk = step([empty], (q[0][:1], q[1][:1]), sinks=torch.tensor([0.5, -1, 2, 0], device=DEVICE))
    assert not sunk.out.any()
    torch.testing.assert_close(sunk.lse[0].cpu(), torch.tensor([0.5, -1, 2, 0]))


def pinned(dim: int) -> Launch:
    """The launch the package comes with, but for a quarter of its programs."""
    how = launches("step_attention")["attend"][dim]
    return Launch({**how.blocks, "PROGRAMS": how.blocks["PROGRAMS"] // 4}, how.num_warps, 2)
