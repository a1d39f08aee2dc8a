"""What makes the host wait for a device: nothing in a recycled step, the ids in a look-up."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from pretend_device import Waited, pretend
from talks import SETTINGS, engine_of, open_gates
from test_devices import CASES

from longmem import MemoryConfig
from longmem.feeding import Feed
from longmem.memory import ReadSpan
from longmem.sampling import Sampler, Sampling, new_generator

PLACING = {"event", "upload"}
"""Waits for blocks that have no slot or closed just now; the kernels place those without."""


@pytest.fixture(scope="module")
def world():
    with pretend() as made:
        yield made


@cache
def read(case: str):
    """`begun` once for all tests of this file, at the first step of a reply."""
    engine, memory = begun(*CASES[case])
    engine.forward([Feed(memory, [1], [ReadSpan(1, 1)], [0])])
    return engine, memory


def begun(kind: str, changes: dict[str, Any], tokens: int = 144, **model: Any):
    """An engine on the device, and a memory that has read enough to look blocks up."""
    config = MemoryConfig(**{**SETTINGS, **changes})
    gates = open_gates() if config.compressive else None
    engine = engine_of(config, kind, {"": "cuda:0"}, gates, **model)
    memory = engine.new_memory(journal=True)
    ids = [i * 37 % 2000 for i in range(tokens)]
    for at in range(0, len(ids), 48):
        part = ids[at : at + 48]
        engine.forward([Feed(memory, part, [ReadSpan(len(part), len(part))], [0])])
    return engine, memory


@pytest.mark.parametrize("case", CASES)
def test_a_recycled_step_does_not_wait_for_the_device(world, case):
    engine, memory = read(case)
    surprise = memory.text is not None
    with world.no_waits(*["download"] * surprise):  # where blocks end is for the host to know
        for token in range(3):
            engine.forward([Feed(memory, [token], [ReadSpan(1, 0)])])
    with world.counted() as waits:
        engine.forward([Feed(memory, [7], [ReadSpan(1, 0)], best=True)])
    assert waits == {"download": 1 + surprise}  # the token


@pytest.mark.parametrize("case", CASES)
def test_a_look_up_waits_once_for_the_ids_of_its_blocks(world, case):
    engine, memory = read(case)
    layers = sum(layer.role.looks_up for layer in memory.full_layers)
    surprise = memory.text is not None
    for ids, spans in (([5], [ReadSpan(1, 1)]), ([9] * 48, [ReadSpan(24, 24)] * 2)):
        with world.counted() as waits:
            engine.forward([Feed(memory, ids, spans, [0], trace=True)])
        assert waits.pop("download", 0) == layers * len(spans) + surprise
        assert set(waits) <= PLACING | ({"item"} if surprise else set())  # moves an edge


def test_steps_of_the_kernels_wait_for_the_ids_of_look_ups_alone(world, monkeypatch):
    """On the device the kernels serve: Triton's interpreter runs them here."""
    monkeypatch.setenv("LONGMEM_KERNELS", "auto")
    shape = {"dtype": torch.bfloat16, "head_dim": 64, "layers": 1}
    engine, memory = begun("llama", {"n_local": 16, "topk": 1}, 48, **shape)
    assert memory.layers[0].spec.kernels
    with world.counted() as waits:
        engine.forward([Feed(memory, [3, 5], [ReadSpan(2, 2)])])
    assert waits == {"download": 1}
    engine.graphs = None
    with world.no_waits():
        engine.forward([Feed(memory, [4], [ReadSpan(1, 0)])])


def test_a_token_is_drawn_with_one_wait(world):
    logits = torch.randn(1, 50, device="cuda:0")
    ids = torch.zeros(1, 3, dtype=torch.long, device="cuda:0")
    heat = {"temperature": 0.7, "top_k": 9, "top_p": 0.9, "repetition_penalty": 1.2}
    for sampling in (Sampling(), Sampling(**heat)):
        with world.counted() as waits:
            Sampler(sampling).next(ids, logits, new_generator("cuda:0", 1))
        assert sum(waits.values()) == 1


def test_the_pretended_device_refuses_what_a_real_one_would(world):
    there, here = torch.ones(3, device="cuda:0"), torch.ones(3)
    for meet in (lambda: there + here, lambda: there + there.to("cuda:1")):
        with pytest.raises(RuntimeError, match="same device"):
            meet()
    assert (there * torch.tensor(2.0)).tolist() == [2.0] * 3  # one number may meet any device
    for wait in (lambda: float(there[0]), lambda: there[there > 0], lambda: there.cpu()):
        with world.no_waits(), pytest.raises(Waited):
            wait()


def test_the_pretended_device_shows_a_host_that_does_not_wait_for_its_copies(world):
    there = torch.arange(3.0, device="cuda:0")
    host = torch.empty(3, pin_memory=True)
    host.copy_(there, non_blocking=True)
    with pytest.raises(AssertionError, match="not waited for"):
        host.tolist()
    torch.cuda.synchronize()
    assert host.tolist() == [0, 1, 2]
    there.copy_(host, non_blocking=True)
    with pytest.raises(AssertionError, match="not waited for"):
        host.zero_()
