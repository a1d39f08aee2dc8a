"""What makes a run in Triton's interpreter, which goes through programs one by one, bearable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from longmem.ops.kernels import Launch
from longmem.ops.kernels.configs import tried

_FEW = {
    ("step_attention", "attend"): {"PROGRAMS": 2, "BLOCK_N": 32},
    ("compressive", "walk"): {"BLOCK_R": 64, "BLOCK_T": 32, "BLOCK_F": 64, "BLOCK_N": 64},
}
"""Fewer and larger tiles than are pinned for a GPU."""


@contextmanager
def few_programs(device: torch.device) -> Iterator[None]:
    """Within, work on a CPU is cut into few programs instead of hundreds. On a GPU nothing changes."""
    with ExitStack() as stack:
        if device.type != "cuda":
            for (op, kernel), blocks in _FEW.items():
                stack.enter_context(tried(op, kernel, Launch(blocks)))
        yield
