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

SETTINGS = ("auto", "off", "interpret")
"""What the environment variable LONGMEM_KERNELS may be."""


def kernels_serve(device: torch.device, dtype: torch.dtype, dim: int) -> bool:
    """Whether a layer's keys and values are read by kernels, and lie as kernels read them.

    The environment variable LONGMEM_KERNELS decides, read at each call: "auto" (default) serves CUDA
    devices, "off" none, "interpret" the CPU, too, through Triton's interpreter (TRITON_INTERPRET=1 has
    to be set before triton is imported): slow, for tests.

    Args:
        device, dtype: of the keys.
        dim: D.

    Raises:
        ValueError: LONGMEM_KERNELS is none of these, or "interpret" without TRITON_INTERPRET=1 where
            there is no GPU, either.
    """
    wanted = _wanted()
    if wanted == "off" or dtype not in DTYPES or dim not in DIMS or not _installed():
        return False
    return device.type == "cuda" or (wanted == "interpret" and interpreted())


def _wanted() -> str:
    """LONGMEM_KERNELS, which has to be something that can be."""
    wanted = os.environ.get("LONGMEM_KERNELS", "auto")
    if wanted not in SETTINGS:
        names = ", ".join(SETTINGS)
        raise ValueError(f"LONGMEM_KERNELS={wanted} is unknown; it is one of {names}")
    if wanted == "interpret" and not (interpreted() or torch.cuda.is_available()):
        raise ValueError(
            "LONGMEM_KERNELS=interpret needs TRITON_INTERPRET=1, set before triton is imported"
        )
    return wanted


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _installed() -> bool:
    return find_spec("triton") is not None
