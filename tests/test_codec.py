"""Codecs: exact where they say so, bounded elsewhere, and as small as promised."""

from __future__ import annotations

import pytest
import torch

from longmem.codec import get_codec

EDGES = {
    "nothing": torch.zeros(1),
    "one value": torch.full((1,), 7.3),
    "tiny": torch.tensor([1e-9, 3e-9, -2e-9]),
    "large offset": torch.tensor([5000.0, 5000.5, 5001.0]),
    "largest": torch.tensor([65504.0, -65504.0]),
}


def rows(n: int, dim: int = 32, heads: int = 2, seed: int = 0) -> torch.Tensor:
    """K/V ``[n, 2, H_kv, D]`` with a few large key channels, as models have them."""
    made = torch.randn(n, 2, heads, dim, generator=torch.Generator().manual_seed(seed))
    made[:, 0, :, :3] *= 30
    return made


def steps(payload) -> torch.Tensor:
    """The step of every value ``[n, 2, H_kv, D]``."""
    shape = (payload.codes.shape[0], *payload.key_scales.shape[1:3])
    keys = payload.key_scales[..., 0].float().expand(shape)
    values = payload.value_scales[..., 0].float()[..., None].expand(shape)
    return torch.stack((keys, values), 1)


def test_bf16_gives_a_bf16_model_its_own_values_back():
    codec, x = get_codec("bf16"), rows(70).bfloat16()
    assert torch.equal(codec.decode(codec.encode(x), torch.bfloat16), x)


def test_bf16_rounds_float32_once():
    codec, x = get_codec("bf16"), rows(70)
    once = codec.decode(codec.encode(x), torch.float32)
    assert torch.equal(codec.decode(codec.encode(once), torch.float32), once)
    assert ((once - x).abs() <= x.abs() * 2**-8).all() and not torch.equal(once, x)


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("n", [1, 64, 131])
def test_a_decoded_value_is_at_most_half_a_step_off(name, n):
    codec, x = get_codec(name), rows(n)
    payload = codec.encode(x)
    error = (codec.decode(payload, torch.float32) - x).abs()
    assert (error <= steps(payload) * 0.5 + 1e-6).all()
    assert payload.codes.max() > 0


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_step_is_the_range_over_the_levels(name):
    payload, x = get_codec(name).encode(rows(128)), rows(128)
    levels = 255 if name == "int8" else 15
    keys, values = x.unbind(1)
    for found, along in (
        (payload.key_scales[0], keys.flatten(1).T),
        (payload.value_scales, values),
    ):
        spread = (along.amax(-1) - along.amin(-1)).reshape(found[..., 0].shape)
        assert torch.allclose(found[..., 0].float(), spread / levels, rtol=5e-3)


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("edge", EDGES)
def test_values_at_the_edges_of_the_range_stay_finite_and_near(name, edge):
    x = EDGES[edge].repeat(400)[: 12 * 2 * 2 * 8].reshape(12, 2, 2, 8)
    codec = get_codec(name)
    payload = codec.encode(x)
    error = (codec.decode(payload, torch.float32) - x).abs()
    assert error.isfinite().all()
    assert (error <= steps(payload) * 0.5 + x.abs() * 1e-6).all()


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_values_beyond_half_precision_are_cut_and_harm_no_others(name):
    codec, x = get_codec(name), rows(64)
    x[3, 1, 0, 5] = 1e9
    decoded = codec.decode(codec.encode(x), torch.float32)
    assert decoded.isfinite().all() and decoded[3, 1, 0, 5] > 60_000
    other = torch.ones(64, dtype=torch.bool)
    other[3] = False
    assert torch.equal(decoded[other], codec.decode(codec.encode(rows(64)), torch.float32)[other])


@pytest.mark.parametrize("name", ["bf16", "int8", "int4"])
def test_rows_are_decoded_the_same_alone_and_together(name):
    codec = get_codec(name)
    payload = codec.encode(rows(131))
    whole = codec.decode(payload, torch.float32)
    for start, stop in ((0, 1), (17, 40), (130, 131)):
        assert torch.equal(
            codec.decode(payload.rows(start, stop), torch.float32), whole[start:stop]
        )


@pytest.mark.parametrize(("name", "most"), [("int8", 0.54), ("int4", 0.33)])
@pytest.mark.parametrize("dim", [32, 64, 128])
def test_a_payload_is_as_small_as_promised_with_all_its_scales(name, most, dim):
    codec = get_codec(name)
    x = rows(codec.group_tokens, dim)
    assert codec.encode(x).nbytes <= most * 2 * x.numel()


def test_int4_holds_two_channels_in_a_byte():
    payload = get_codec("int4").encode(rows(64))
    assert payload.codes.shape == (64, 2, 2, 16) and payload.codes.max() > 15


def test_exact_has_no_codec():
    assert get_codec("exact") is None
