"""Models whose layers lie on several devices: each layer's memory lies with it."""

from __future__ import annotations

from typing import Any

import pytest
from pretend_device import pretend
from talks import SETTINGS, assert_same, engine_of, open_gates, talk
from test_devices import DRAWN
from torch import Tensor

from longmem import MemoryConfig
from longmem.config import Compressive
from longmem.stores import SQLiteStore

SPLIT = {
    "": "cuda:0",
    "model.layers.1": "cuda:1",
    "model.layers.2": "cuda:1",
    "model.norm": "cuda:1",
    "lm_head": "cuda:1",
}


@pytest.fixture
def world():
    with pretend() as made:
        yield made


def moved(given: Any, device: Any) -> Any:
    """What accelerate's hooks do to a layer's arguments."""
    if isinstance(given, Tensor):
        return given.to(device, non_blocking=True)
    if isinstance(given, list | tuple):
        return type(given)(moved(each, device) for each in given)
    return {k: moved(v, device) for k, v in given.items()} if isinstance(given, dict) else given


def hooked(model) -> None:
    """Let every layer fetch what it is given to its own device, as accelerate's hooks do."""
    parts = [*model.model.layers, model.model.norm, model.lm_head]
    for part in parts:
        device = next(part.parameters()).device

        def fetch(_: Any, args: Any, kwargs: Any, device: Any = device) -> Any:
            return moved(args, device), moved(kwargs, device)

        part.register_forward_pre_hook(fetch, with_kwargs=True)


def returned(model) -> None:
    """Give the caller what it asked for where it asked from, as the hook of a whole model does."""

    def fetch(_: Any, args: Any, kwargs: Any) -> Any:
        return moved(args, "cuda:0"), moved(kwargs, "cuda:0")

    def give(_: Any, args: Any, output: Any) -> Any:
        output.logits = output.logits.to("cuda:0")
        return output

    model.register_forward_pre_hook(fetch, with_kwargs=True)
    model.register_forward_hook(give)


CASES: dict[str, dict[str, Any]] = {
    "fixed stride": {},
    "best tokens, per head, in order, dynamic": {
        "topk_tokens": 24,
        "selection": "kv_head",
        "far_positions": "ordered",
        "recycling": "dynamic",
    },
    "surprise, 8 bits": {
        "block_boundaries": "surprise",
        "refine": "conductance",
        "surprise_window": 8,
        "codec": "int8",
    },
    "gates, layers that share look-ups": {
        "lookup_layers": (0, 2),
        "compressive": Compressive(chunk=16),
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_conversation_over_two_devices_is_that_on_the_cpu(world, case, tmp_path):
    config = MemoryConfig(**{**SETTINGS, **CASES[case]})
    gates = open_gates() if config.compressive else None
    said = []
    for devices in (None, SPLIT):
        prepare = None if devices is None else lambda model: (hooked(model), returned(model))
        engine = engine_of(config, "llama", devices, gates, prepare)
        with SQLiteStore(tmp_path / str(devices is None)) as store:
            with engine.session("a", store=store) as session:
                said.append(talk(session, DRAWN))
                layers = session._conversation.memory.layers
            with engine.session("a", store=store) as session:
                said[-1].append(session.ask("Which?", max_new_tokens=3).text)
    assert [layer.local.v.device.index for layer in layers] == [0, 1, 1]
    assert_same(*said)
