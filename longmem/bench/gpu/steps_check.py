"""Steps of a small model with kernels and without: what no comparison of single ops would show."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from longmem.bench.gpu.interpreted import few_programs
from longmem.bench.gpu.model import engine_of, random_ids, random_model
from longmem.bench.gpu.shapes import TINY_SHAPE
from longmem.bench.gpu.trust import Checked
from longmem.engine import Engine
from longmem.feeding import Feed, Segment
from longmem.memory import ReadSpan, SessionMemory

FARTHER = 2.0
"""Logits with kernels may lie so many times as far from the float32 model's as those without: both
round to half precision, in different places. What is wrong lies ten times as far and more."""
_HISTORY = 64
"""Tokens read before: initial tokens, closed blocks, pending tokens and a full window."""
_BLOCKS = 8
"""Looked up: all there are, so that rounding chooses no others."""
_REPEATS = 3
"""Recycled steps, so that what is captured at the first is replayed at the last."""


@dataclass(frozen=True)
class _Stepped:
    """One model's steps.

    Args:
        logits: ``[S, V]`` on the host, by kind of step.
        served: whether kernels served all of its layers.
        ungraphed: why no graph was replayed; empty where one was.
    """

    logits: dict[str, Tensor]
    served: bool
    ungraphed: str


def check_steps(device: torch.device) -> list[Checked]:
    """Logits of a refresh step, of recycled steps, and of a step of two sessions; and whether steps
    went through a graph. Where kernels do not serve, nothing was compared, and nothing is right."""
    exact = _stepped(device, torch.float32, kernels=False).logits
    without = _stepped(device, torch.bfloat16, kernels=False).logits
    ours = _stepped(device, torch.bfloat16, kernels=True)
    if not ours.served:
        return [_checked("steps", name, None, "kernels do not serve") for name in exact]
    found = [
        _checked("steps", name, _farther(ours.logits[name], without[name], exact[name]))
        for name in exact
    ]
    why = ours.ungraphed
    return [*found, _checked("graphs", "replayed steps", None if why else 0.0, why)]


def _checked(op: str, name: str, error: float | None, why: str = "") -> Checked:
    return Checked(op, name, "the tiny model", 64, "bfloat16", error, why)


def _farther(ours: Tensor, without: Tensor, exact: Tensor) -> float:
    """How far ours lie from the float32 model's, as a share of what is allowed."""
    allowed = FARTHER * float((without - exact).norm())
    return float((ours - exact).norm()) / allowed


def _stepped(device: torch.device, dtype: torch.dtype, kernels: bool) -> _Stepped:
    """The same steps after the same text, of one model."""
    with _kernels(kernels), few_programs(device):
        model = random_model(TINY_SHAPE, device).to(dtype)
        config = TINY_SHAPE.memory.replace(topk=_BLOCKS, device_bytes=2**18)
        engine = engine_of(model, TINY_SHAPE, config, 32)
        first = _read(engine, _HISTORY, seed=1)
        found = {"refresh step": _step(engine, [first], 0, voters=1)}
        for at in range(_REPEATS):
            found["recycled step"] = _step(engine, [first], at + 1)
        second = _read(engine, _HISTORY - 11, seed=2)
        _step(engine, [second], 0, voters=1)
        for at in range(_REPEATS):
            found["packed step"] = _step(engine, [first, second], at + 7)
        served = all(layer.kernels for layer in engine.info.layers)
        return _Stepped(found, served, _ungraphed(engine))


def _ungraphed(engine: Engine) -> str:
    """Why no step was replayed from a graph; empty where one was."""
    graphs = engine.graphs
    if graphs is None:
        return "no graph serves this model"
    if graphs.refused:
        return f"refused: {graphs.refused}"
    return "" if graphs.replays else "none was replayed"


def _read(engine: Engine, tokens: int, seed: int) -> SessionMemory:
    memory = engine.new_memory()
    engine.read(memory, [Segment(random_ids(TINY_SHAPE, tokens, seed), engine.spans(tokens))])
    return memory


def _step(engine: Engine, memories: list[SessionMemory], at: int, voters: int = 0) -> Tensor:
    ids = random_ids(TINY_SHAPE, len(memories), seed=100 + at)
    fed = engine.forward(
        [Feed(m, [i], [ReadSpan(1, voters)]) for m, i in zip(memories, ids, strict=True)]
    )
    return torch.stack([each.logits for each in fed]).cpu()


@contextmanager
def _kernels(on: bool) -> Iterator[None]:
    """Within, kernels serve as the environment says, or not at all."""
    before = os.environ.get("LONGMEM_KERNELS")
    if not on:
        os.environ["LONGMEM_KERNELS"] = "off"
    try:
        yield
    finally:
        os.environ.pop("LONGMEM_KERNELS", None)
        if before is not None:
            os.environ["LONGMEM_KERNELS"] = before
