"""Rotation at positions where float32 angles would fail."""

from __future__ import annotations

import pytest
import torch

from longmem.ops.rotary import Rotary

INV_FREQ = 1.0 / 10000 ** (torch.arange(0, 8, 2, dtype=torch.float64) / 8)


@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_logits_depend_on_the_distance_only_even_at_a_million_tokens(style):
    rotary = Rotary(INV_FREQ, style)
    q, k = torch.randn(2, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def logit(at_q: int, at_k: int) -> float:
        turned = [
            rotary.rotate(x, rotary.angles(torch.tensor([at]), torch.float32))
            for x, at in ((q, at_q), (k, at_k))
        ]
        return float((turned[0] * turned[1]).sum())

    for distance in (0, 1, 100):
        assert logit(distance, 0) == pytest.approx(logit(10**6 + distance, 10**6), abs=1e-5)
    assert logit(0, 0) != pytest.approx(logit(3, 0), abs=1e-2)


def test_interleaved_pairs_are_the_half_style_reordered():
    x = torch.randn(3, 5, 8)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    angles = Rotary(INV_FREQ, "half").angles(torch.arange(5), torch.float32)
    half = Rotary(INV_FREQ, "half").rotate(x[..., order], angles)
    assert torch.equal(Rotary(INV_FREQ, "interleaved").rotate(x, angles)[..., order], half)


def test_dimensions_beyond_the_table_pass_through():
    x = torch.randn(2, 3, 12)
    rotary = Rotary(INV_FREQ, "half")
    turned = rotary.rotate(x, rotary.angles(torch.arange(3), torch.float32))
    assert torch.equal(turned[..., 8:], x[..., 8:]) and not torch.equal(turned, x)
