"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real weights and text, for the tests that need it."""
    folder = os.environ.get("LONGMEM_TEST_DATA")
    if not folder:
        pytest.skip("set LONGMEM_TEST_DATA to the folder of real weights and text to run this")
    return Path(folder)
