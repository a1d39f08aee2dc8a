"""Which tensors the kernels serve; all others take the ops' plain torch form."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch

DIMS = (64, 80, 96, 128, 256)
"""Head dimensions D the kernels are made for."""
DTYPES = (torch.bfloat16, torch.float16)
"""Of keys and values. In float32 the tensor cores would round to TF32, so torch computes those."""


def kernels_serve(device: torch.device, dtype: torch.dtype, dim: int) -> bool:
    """Whether a layer's keys and values are read by kernels, and lie as kernels read them.

    The environment variable LONGMEM_KERNELS decides, read at each call: "auto" (default) serves CUDA
    devices, "off" none, "interpret" the CPU, too, through Triton's interpreter (TRITON_INTERPRET=1 has
    to be set before triton is imported): slow, for tests.

    Args:
        device, dtype: of the keys.
        dim: D.
    """
    wanted = os.environ.get("LONGMEM_KERNELS", "auto")
    if wanted == "off" or dtype not in DTYPES or dim not in DIMS or not _installed():
        return False
    return device.type == "cuda" or (wanted == "interpret" and interpreted())


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _installed() -> bool:
    return find_spec("triton") is not None
