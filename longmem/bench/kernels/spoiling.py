"""New memory full of NaN, so that what is not written shows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def spoilt() -> Iterator[None]:
    """Within, uninitialised memory holds NaN, and integers their largest value: else it may hold the
    right result of the run before, which a kernel that writes nothing would be praised for.

    torch has this as a part of its deterministic mode, which is on here but for its refusals.
    """
    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=only_warned)
