"""Whole conversations on a device that is not there: nothing meets across devices, and results are
those of the CPU."""

from __future__ import annotations

from typing import Any

import pytest
from pretend_device import pretend
from talks import SETTINGS, assert_same, engine_of, open_gates, talk

from longmem import MemoryConfig, Sampling
from longmem.config import Compressive
from longmem.stores import SQLiteStore

GREEDY = Sampling(max_new_tokens=3)
DRAWN = Sampling(
    max_new_tokens=5,
    temperature=0.9,
    top_k=40,
    top_p=0.95,
    min_p=0.01,
    repetition_penalty=1.1,
    seed=5,
)
GATED: dict[str, Any] = {"topk": 0, "compressive": Compressive(chunk=16)}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "fixed stride": ("llama", {}),
    "dynamic, blocks per head, in order": (
        "llama",
        {
            "recycling": "dynamic",
            "selection": "kv_head",
            "far_positions": "ordered",
            "topk_tokens": 20,
        },
    ),
    "budget, best tokens, pooled": (
        "llama",
        {
            "recycling": "budget",
            "lookup_share": 0.3,
            "topk_tokens": 24,
            "pool_tokens": 3,
            "repr_by": "logits",
        },
    ),
    "sliding layers, neighbours": ("gemma2", {"contiguity": 2}),
    "sliding layers, gates": ("gemma2", GATED),
    "segment, gates": ("llama", {**GATED, "window": "segment"}),
    "gates in one softmax, few blocks": (
        "llama",
        {"max_blocks": 6, "compressive": Compressive(chunk=16, mix="lse", rule="delta")},
    ),
    "surprise": (
        "llama",
        {"block_boundaries": "surprise", "refine": "modularity", "surprise_window": 8},
    ),
    "all blocks": ("llama", {"lookup": "all", "topk_tokens": 24}),
    "4 bits, few layers look up": ("llama", {"codec": "int4", "lookup_layers": (1, 2)}),
    "groups of blocks": (
        "llama",
        {"two_level_above": 4, "two_level_shelf": 4, "two_level_group": 4, "two_level_probe": 2},
    ),
    "bounds, no slots": ("llama", {"scorer": "bounds", "device_bytes": 0}),
}


@pytest.fixture
def world():
    with pretend() as made:
        yield made


@pytest.mark.parametrize("case", CASES)
def test_a_conversation_on_a_device_is_that_on_the_cpu(world, case, tmp_path):
    kind, changes = CASES[case]
    config = MemoryConfig(**{**SETTINGS, **changes})
    gates = open_gates() if config.compressive else None
    said = []
    for devices in (None, {"": "cuda:0"}):
        engine = engine_of(config, kind, devices, gates)
        with SQLiteStore(tmp_path / str(devices)) as store:
            with engine.session("a", store=store) as session:
                told = talk(session, DRAWN)
            with engine.session("a", store=store) as session:
                told.append(session.ask("Which one was longest?", sampling=GREEDY).text)
        said.append(told)
    assert world.transfers["upload"] and not world.transfers["peer"]
    assert_same(*said)
