"""The compressive memory's kernels against their definition, one token and one head at a time."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from conftest import needs_kernels
from torch import Tensor

from longmem.config import Compressive
from longmem.memory import Gates, LayerSpec
from longmem.memory.compressive import CompressiveMemory
from longmem.ops.compressive import (
    EPS,
    CompressiveState,
    FeatureMap,
    fold,
    get_feature_map,
    mix,
    read_and_fold,
    read_and_fold_naive,
    retrieve_naive,
    update,
    update_naive,
)
from longmem.ops.compressive.launched import served
from longmem.ops.kernels.configs import Launch, tried

pytestmark = needs_kernels
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KV_HEADS = 2
SUMS = 2e-5
"""Of the largest entry. Sums of float32 in another order; on tensor cores a factor is two TF32 numbers,
which keep 22 of its 24 bits."""
ROUNDED = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Of an output's value: half a step of its dtype, for sums that fall on either side of a middle."""

BF16, FP16 = torch.bfloat16, torch.float16


@pytest.fixture(autouse=True)
def kernels(monkeypatch) -> object:
    """Kernels serve here, too; memory that is allocated but not written holds NaN."""
    if DEVICE.type == "cpu":
        monkeypatch.setenv("LONGMEM_KERNELS", "interpret")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def feature_map(name: str, dim: int) -> FeatureMap:
    weight = torch.randn(KV_HEADS, dim, dim, generator=torch.Generator().manual_seed(5)) / dim**0.5
    return get_feature_map(name, weight.to(DEVICE) if name == "learned" else None)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def begun(features: FeatureMap, dim: int, rule: str) -> CompressiveState:
    """A memory that holds seven tokens."""
    state = CompressiveState.empty(KV_HEADS, features.width(dim), dim, DEVICE)
    k, v = draw(KV_HEADS, 7, dim, seed=3), draw(KV_HEADS, 7, dim, seed=4)
    update(state, features(k), v, rule)
    return state


def on_host(state: CompressiveState) -> CompressiveState:
    return CompressiveState(state.M.cpu(), state.z.cpu(), state.tokens)


def host_map(name: str, dim: int) -> FeatureMap:
    features = feature_map(name, dim)
    return features if name != "learned" else get_feature_map(name, features.weight.cpu())


def coarse(dim: int) -> AbstractContextManager[None]:
    """On a GPU the pinned launch; in the interpreter, which pays by the operation, larger tiles."""
    if DEVICE.type == "cuda":
        return nullcontext()
    tile = {64: 64, 80: 16, 96: 32, 128: 128, 256: 256}[dim]
    blocks = {"BLOCK_R": 64, "BLOCK_T": 32, "BLOCK_F": tile, "BLOCK_N": 64}
    return tried("compressive", "walk", Launch(blocks))


def same(got: Tensor, expected: Tensor) -> None:
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(got.cpu() / scale, expected / scale, atol=SUMS, rtol=0)


CASES = [
    (64, BF16, 1, 1, 1, 16, "elu", "linear", 1.0),
    (64, FP16, 63, 63, 4, 16, "elu", "delta", 1.0),
    (64, BF16, 64, 64, 8, 16, "elu", "linear", 0.5),
    (64, BF16, 65, 40, 1, 16, "elu", "delta_literal", torch.tensor([0.25, 1.0])),
    (64, BF16, 1000, 5, 1, 128, "elu", "linear", 1.0),
    (80, FP16, 20, 20, 2, 16, "elu", "delta", 1.0),
    (96, BF16, 33, 9, 1, 32, "learned", "linear", 0.75),
    (128, BF16, 130, 130, 4, 128, "elu", "delta", 1.0),
    (256, BF16, 17, 3, 1, 16, "elu", "linear", 1.0),
    (64, BF16, 24, 24, 2, 8, "dpfp", "delta", 1.0),
    (80, FP16, 9, 9, 1, 8, "dpfp", "linear", torch.tensor([0.5, 0.75])),
]


@pytest.mark.parametrize(
    ("dim", "dtype", "tokens", "queries", "group", "chunk", "name", "rule", "decay"), CASES
)
def test_reading_and_folding_in_one_launch_equals_the_naive_loop(
    dim, dtype, tokens, queries, group, chunk, name, rule, decay
):
    features = feature_map(name, dim)
    q = draw(KV_HEADS * group, queries, dim, seed=0, dtype=dtype)
    k = draw(KV_HEADS, tokens, dim, seed=1, dtype=dtype)
    v = draw(tokens, KV_HEADS, dim, seed=2, dtype=dtype).transpose(0, 1)
    state = begun(features, dim, rule)
    expected = on_host(state)
    assert served(state, features, q, k, v)
    on_device = decay.to(DEVICE) if isinstance(decay, Tensor) else decay
    with coarse(dim):
        got = read_and_fold(q, k, v, state, features, chunk=chunk, rule=rule, decay=on_device)
    wanted = read_and_fold_naive(
        q.cpu(),
        k.cpu(),
        v.cpu(),
        expected,
        host_map(name, dim),
        chunk=chunk,
        rule=rule,
        decay=decay,
    )
    for one, other in zip((*got, state.M, state.z), (*wanted, expected.M, expected.z), strict=True):
        same(one, other)
    assert state.tokens == expected.tokens


@pytest.mark.parametrize(
    ("name", "rule"), [("elu", "linear"), ("elu", "delta"), ("dpfp", "linear")]
)
def test_folding_alone_equals_the_naive_update_and_leaves_snapshots_alone(name, rule):
    features, dim = feature_map(name, 64), 64
    k, v = draw(KV_HEADS, 32, dim, seed=1), draw(KV_HEADS, 32, dim, seed=2)
    state = begun(features, dim, rule)
    snapshot, before = state.clone(), (state.M.clone(), state.z.clone())
    expected = on_host(state)
    fold(k, v, state, features, chunk=16, rule=rule)
    for start in (0, 16):
        part = slice(start, start + 16)
        update_naive(expected, features(k.cpu()[:, part]), v.cpu()[:, part], rule)
    same(state.M, expected.M)
    same(state.z, expected.z)
    assert torch.equal(snapshot.M, before[0]) and torch.equal(snapshot.z, before[1])


@pytest.mark.parametrize("rule", ["linear", "delta", "delta_literal"])
def test_many_chunks_in_one_launch_give_the_bits_of_one_launch_each(rule):
    features, dim = feature_map("elu", 64), 64
    k, v = draw(KV_HEADS, 48, dim, seed=1), draw(KV_HEADS, 48, dim, seed=2)
    once, thrice = begun(features, dim, rule), begun(features, dim, rule)
    fold(k, v, once, features, chunk=16, rule=rule)
    for start in range(0, 48, 16):
        part = slice(start, start + 16)
        fold(k[:, part], v[:, part], thrice, features, chunk=16, rule=rule)
    assert torch.equal(once.M, thrice.M) and torch.equal(once.z, thrice.z)
    assert once.tokens == thrice.tokens == 55


@pytest.mark.parametrize("by_lse", [False, True])
@pytest.mark.parametrize(
    ("dim", "dtype", "tokens", "group", "name", "rule"),
    [
        (64, BF16, 1, 1, "elu", "linear"),
        (64, FP16, 65, 4, "elu", "delta"),
        (80, BF16, 9, 8, "elu", "delta"),
        (96, FP16, 1, 4, "elu", "linear"),
        (128, BF16, 63, 1, "elu", "linear"),
        (128, BF16, 1, 8, "learned", "linear"),
        (256, BF16, 3, 1, "elu", "delta_literal"),
        (64, BF16, 5, 2, "dpfp", "delta"),
    ],
)
def test_mixing_equals_its_definition(dim, dtype, tokens, group, name, rule, by_lse):
    features, heads = feature_map(name, dim), KV_HEADS * group
    state = begun(features, dim, rule)
    q = draw(tokens, heads, dim, seed=1, dtype=dtype).transpose(0, 1)
    out = draw(heads, tokens, dim, seed=2, dtype=dtype)
    lse = draw(heads, tokens, seed=5, dtype=torch.float32) if by_lse else None
    gate = (
        torch.linspace(-2, 2, heads, device=DEVICE)
        if by_lse
        else torch.linspace(0, 1, heads, device=DEVICE)
    )
    got = mix(out, q, lse, state, features, rule, gate)
    held, mass = retrieve_naive(host_map(name, dim)(q.cpu()), on_host(state), rule)
    mass = mass.clamp(min=EPS)
    share = gate.cpu()[:, None]
    if lse is not None:
        share = torch.sigmoid(share + mass.log() - lse.cpu())
    near = out.cpu().float()
    expected = near + share.expand_as(mass)[..., None] * (held / mass[..., None] - near)
    scale = float(expected.abs().max())
    torch.testing.assert_close(got.cpu().float(), expected, rtol=ROUNDED[dtype], atol=SUMS * scale)
    assert got.dtype == dtype


def test_a_closed_gate_gives_attention_and_an_open_one_memory_to_the_bit():
    features, state = feature_map("elu", 64), begun(feature_map("elu", 64), 64, "linear")
    out, q = draw(4, 3, 64, seed=1), draw(4, 3, 64, seed=2)
    gate = torch.tensor([0.0, 1.0, 0.0, 1.0], device=DEVICE)
    got = mix(out, q, None, state, features, "linear", gate)
    other = mix(draw(4, 3, 64, seed=9), q, None, state, features, "linear", gate)
    assert torch.equal(got[0::2], out[0::2]) and torch.equal(got[1::2], other[1::2])


def test_float32_gradients_and_batches_take_the_torch_form():
    features, state = feature_map("elu", 64), begun(feature_map("elu", 64), 64, "linear")
    x = draw(KV_HEADS, 4, 64)
    assert served(state, features, x)
    assert not served(state, features, x.float())
    assert not served(state, features, x.clone().requires_grad_())
    assert not served(state, features, x, draw(KV_HEADS, 4, 64, dtype=FP16))
    batch = CompressiveState.empty(KV_HEADS, 64, 64, DEVICE, batch=(3,))
    assert not served(batch, features, x)


def memory_of(rule: str) -> CompressiveMemory:
    spec = LayerSpec(0, 4, KV_HEADS, 64, None, None, 0.125, BF16, DEVICE)
    config = Compressive(rule=rule, feature_map="elu", chunk=16)
    return CompressiveMemory(spec, config, Gates(torch.full((1, 4), 0.5)), 16)


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_a_layers_memory_does_not_depend_on_how_its_stream_was_cut(rule, monkeypatch):
    k, v = draw(KV_HEADS, 70, 64, seed=1), draw(KV_HEADS, 70, 64, seed=2)
    out, q = draw(4, 5, 64, seed=3), draw(4, 5, 64, seed=4)
    whole, cut = memory_of(rule), memory_of(rule)
    whole.fold(k, v)
    for start, stop in [(0, 3), (3, 40), (40, 41), (41, 70)]:
        cut.fold(k[:, start:stop], v[:, start:stop])
    assert torch.equal(whole.state.M, cut.state.M) and torch.equal(whole.state.z, cut.state.z)
    assert whole.state.tokens == 64
    monkeypatch.setenv("LONGMEM_KERNELS", "off")
    plain = memory_of(rule)
    plain.fold(k, v)
    same(whole.state.M, plain.state.M.cpu())
    expected = plain.mix(out, q, None).cpu().float()
    monkeypatch.undo()
    torch.testing.assert_close(
        whole.mix(out, q, None).cpu().float(), expected, rtol=2 * ROUNDED[BF16], atol=1e-4
    )
