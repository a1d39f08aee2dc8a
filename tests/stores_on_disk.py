"""What the tests of stores on disk share.

A test file takes the fixtures by assignment: ``path, store = stores_on_disk.path, stores_on_disk.store``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from longmem.stores import SQLiteStore

MERGE_BYTES = 10_000  # K/V of three commits as `fill` makes them


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The folder of a store that is not there yet."""
    return tmp_path / "store"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    """An empty store that merges every three commits."""
    with SQLiteStore(path, merge_bytes=MERGE_BYTES) as store:
        yield store
