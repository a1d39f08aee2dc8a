"""LangGraph's own suite for checkpointers: every capability, the extended ones included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import Capability

from longmem.adapters.langgraph import LongMemSaver
from longmem.store import Store
from longmem.stores import InMemoryStore, SQLiteStore


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
def test_every_capability_of_the_suite_is_there_and_passes(kind: str, tmp_path: Path) -> None:
    stores = []

    @checkpointer_test(name=kind)
    async def saver() -> AsyncIterator[LongMemSaver]:
        folder = tmp_path / str(len(stores))
        store: Store = SQLiteStore(folder) if kind == "sqlite" else InMemoryStore()
        stores.append(store)
        with store:
            yield LongMemSaver(store)

    report = asyncio.run(validate(saver))
    failures = [failure for result in report.results.values() for failure in result.failures]
    assert failures == []
    assert {name for name, result in report.results.items() if result.passed} == {
        capability.value for capability in Capability
    }
    assert sum(result.tests_passed for result in report.results.values()) == 81
    assert report.conformance_level() == "FULL"
