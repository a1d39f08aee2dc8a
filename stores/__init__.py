"""Places where sessions live. `longmem.stores.conformance` checks a store of your own."""

from longmem.stores.memory import InMemoryStore
from longmem.stores.sqlite import SQLiteStore

__all__ = ["InMemoryStore", "SQLiteStore"]
