"""Within the window longmem equals the dense attention of every architecture it takes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch
from architectures import HELD, build
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedModel

from longmem.attention import ModelInfo, attach, forward
from longmem.config import MemoryConfig
from longmem.errors import ConfigError
from longmem.memory import ForwardPass, LayerSpec, ReadSpan, SessionMemory

CONFIG = MemoryConfig(n_init=4, n_local=128, block_size=16, topk=4)
TOLERANCE = 1e-4
LENGTHS = ((24, 30), (40, 9), (32, 31))
"""Tokens of two sessions per segment. Sliding windows are 24 (or 32) tokens: the first session
crosses its window between segments, the second inside one."""
pytestmark = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                kind not in CONFIG_MAPPING, reason=f"this transformers has no {kind}"
            ),
        )
        for name, (kind, _) in HELD.items()
    ],
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products this small take longer to share out than to compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def attached(name: str) -> tuple[PreTrainedModel, ModelInfo, tuple[Tensor, Tensor], Tensor]:
    """A model after `attach`, the tokens of two sessions, and their dense logits one after other."""
    model = build(name)
    dense = copy.deepcopy(model)
    ids = torch.randint(
        3, 200, (sum(map(sum, LENGTHS)),), generator=torch.Generator().manual_seed(5)
    )
    first, second = ids.split([sum(a for a, _ in LENGTHS), sum(b for _, b in LENGTHS)])
    with torch.no_grad():
        logits = torch.cat([dense(part[None]).logits[0].float() for part in (first, second)])
    return model, attach(model), (first, second), logits


def worst(name: str, layers: tuple[LayerSpec, ...]) -> float:
    """Largest difference of a logit from the dense model, over three segments of two sessions."""
    model, _, (first, second), expected = attached(name)
    one, two = (SessionMemory(layers, CONFIG, 4, journal=False) for _ in range(2))
    got: tuple[list[Tensor], list[Tensor]] = ([], [])
    for a, b in LENGTHS:
        spans = [ReadSpan(5, 5), ReadSpan(b - 5, b - 5)]
        parts = [
            (one, one.prepare([ReadSpan(a, a)], [0])),
            (two, two.prepare(spans, [0, 5])),
        ]
        tokens = torch.cat([first[one.n_tokens :][:a], second[two.n_tokens :][:b]])
        run = ForwardPass(parts)
        logits = forward(model, tokens[None], run, torch.arange(a + b))
        run.finish()
        for part, rows in zip(got, logits.split([a, b]), strict=True):
            part.append(rows)
    return float((torch.cat([*got[0], *got[1]]) - expected).abs().max())


def test_packed_sessions_in_three_segments_equal_dense_attention(name: str) -> None:
    difference = worst(name, attached(name)[1].layers)
    print(f"{name}: {difference:.1e}")
    assert difference <= TOLERANCE


def test_the_comparison_would_see_rotations_that_are_a_little_off(name: str) -> None:
    def off(layer: LayerSpec) -> LayerSpec:
        if layer.rotary is None:
            return layer
        return replace(layer, rotary=replace(layer.rotary, inv_freq=layer.rotary.inv_freq * 1.01))

    assert worst(name, tuple(map(off, attached(name)[1].layers))) > 10 * TOLERANCE


def test_the_comparison_would_see_a_window_that_is_one_token_off(name: str) -> None:
    layers = attached(name)[1].layers
    if all(layer.sliding is None for layer in layers):
        assert HELD[name][1].get("sliding_window") is None
        return
    for off in (-1, 1):
        wrong = tuple(replace(s, sliding=s.sliding and s.sliding + off) for s in layers)
        assert worst(name, wrong) > 10 * TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_is_measured_alike(name: str, dtype: torch.dtype) -> None:
    expected, info = attached(name)[1], attach(build(name, dtype=dtype))
    assert info.max_positions == expected.max_positions
    for got, layer in zip(info.layers, expected.layers, strict=True):
        assert got.dtype == dtype
        assert (got.sliding, got.scaling) == (layer.sliding, layer.scaling)
        assert (got.rotary is None) == (layer.rotary is None)
        if got.rotary is not None and layer.rotary is not None:
            assert got.rotary.style == layer.rotary.style
            torch.testing.assert_close(
                got.rotary.inv_freq, layer.rotary.inv_freq, rtol=1e-2, atol=1e-6
            )


def test_an_attached_model_says_so_when_called_by_others(name: str) -> None:
    model = attached(name)[0]
    with pytest.raises(ConfigError, match=r"outside longmem.*second copy"):
        model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2)
