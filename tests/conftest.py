"""Shared fixtures."""

from __future__ import annotations

import os

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # read by torch: waiting threads sleep, not spin

from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # before anything imports triton, as transformers does
    os.environ.setdefault("TRITON_INTERPRET", "1")

from importlib.util import find_spec

from hypothesis import settings

from longmem import Engine, MemoryConfig

settings.register_profile("ci", derandomize=True)  # new counterexamples are for people to find
if os.environ.get("CI"):
    settings.load_profile("ci")

torch.set_num_threads(min(2, os.cpu_count() or 1))

SMALL = MemoryConfig(
    n_init=4,
    n_local=64,
    block_size=16,
    block_boundaries="turn",
    topk=4,
    repr_topk=4,
    lookup_span=32,
    stride=4,
)
"""A memory so small that a short chat reaches every part of it."""

needs_kernels = pytest.mark.skipif(
    find_spec("triton") is None
    or not (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"),
    reason="kernels need triton, and a GPU or TRITON_INTERPRET=1",
)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real weights and text, for the tests that need it."""
    folder = os.environ.get("LONGMEM_TEST_DATA")
    if not folder:
        pytest.skip("set LONGMEM_TEST_DATA to the folder of real weights and text to run this")
    return Path(folder)


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The bundled model under `SMALL`."""
    return Engine.nano(SMALL)


def chatter(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """n user and n assistant turns about nothing."""
    return [
        (role, f"{role} {seed + i} says that {i * 7 % 13} things and {i % 5} others are fine.")
        for i in range(n)
        for role in ("user", "assistant")
    ]
