"""Matrix products inside kernels."""

from __future__ import annotations

import os

import triton
import triton.language as tl

_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def product(a, b):  # type: ignore[no-untyped-def]  # triton gives types
    """``a @ b`` summed in float32, on the tensor cores.

    Triton's interpreter multiplies the bit patterns of bfloat16 (seen with 3.6 and 3.9), so that there
    the factors are widened first; they are exact in float32.
    """
    if _INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32))
    return tl.dot(a, b)
