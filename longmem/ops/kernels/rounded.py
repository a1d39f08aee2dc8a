"""Rounding to the type of keys and values inside kernels."""

# Triton gives the types of what it compiles.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import os

import triton
import triton.language as tl

_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """float32 `x` as `dtype`, to the nearest, ties to even, as torch rounds.

    Triton's interpreter cuts float32 off to bfloat16 (seen with 3.6 and 3.9), so that there the bits
    are rounded by hand first.
    """
    if _INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        bits = bits + 0x7FFF + ((bits >> 16) & 1)
        x = ((bits >> 16) << 16).to(tl.float32, bitcast=True)
    return x.to(dtype)
