"""Both stores pass every conformance case; a store that cheats does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from longmem.store import Commit, Records, SessionHandle, Store
from longmem.stores import InMemoryStore, SQLiteStore, conformance
from longmem.stores.claim import Claim
from longmem.stores.handle import SQLiteHandle
from longmem.stores.samples import sample_info


class MergingStore(SQLiteStore):
    """Merges behind every commit whatever it can."""

    def _handle(self, claim: Claim) -> SQLiteHandle:
        handle = super()._handle(claim)
        commit = handle.commit

        def commit_and_merge(new: Commit) -> int:
            head = commit(new)
            while handle.merge(handle.info.n_tokens):
                pass
            return head

        handle.commit = commit_and_merge  # type: ignore[method-assign]
        return handle


MAKERS: dict[str, Callable[[Path], Store]] = {
    "sqlite": lambda path: SQLiteStore(path / "store"),
    "merging": lambda path: MergingStore(path / "store", merge_bytes=5000),  # two small commits
    "memory": lambda path: InMemoryStore(),
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("case", conformance.CASES, ids=lambda case: case.__name__)
def test_store(case: conformance.Case, maker: str, tmp_path: Path) -> None:
    case(lambda: MAKERS[maker](tmp_path))


@pytest.mark.parametrize("maker", MAKERS)
def test_stores_handles_and_records_fulfil_their_protocols(maker: str, tmp_path: Path) -> None:
    with MAKERS[maker](tmp_path) as store:
        assert isinstance(store, Store)
        assert isinstance(store.records, Records)
        assert isinstance(store.create(sample_info()), SessionHandle)


def test_run_finds_a_store_that_forgets_state() -> None:
    class Forgetful(InMemoryStore):
        def open(self, session_id: str) -> SessionHandle:
            self.find(session_id).commits[-1].state.clear()  # type: ignore[attr-defined]
            return super().open(session_id)

    conformance.run(InMemoryStore)
    with pytest.raises(AssertionError):
        conformance.run(Forgetful)
