"""What every `longmem.store.Store` must do. Run it on a store of your own:

    from longmem.stores import conformance

    @pytest.mark.parametrize("case", conformance.CASES, ids=lambda case: case.__name__)
    def test_my_store(case, tmp_path):
        case(lambda: MyStore(tmp_path / "store"))

Each case calls `make_store` once, for an empty store, and closes it. A failure is an
AssertionError or whatever the store raised. What a store promises beyond the protocol (files,
locks, crashes) is its own to test.
"""

from __future__ import annotations

from longmem.stores import (
    cases_blocks,
    cases_commits,
    cases_forks,
    cases_limits,
    cases_records,
    cases_rollback,
    cases_search,
    cases_sessions,
)
from longmem.stores.cases import CASES, Case, MakeStore

__all__ = ["CASES", "Case", "MakeStore", "run"]

_FAMILIES = (
    cases_commits,
    cases_blocks,
    cases_sessions,
    cases_rollback,
    cases_forks,
    cases_search,
    cases_limits,
    cases_records,
)
"""Importing them fills CASES."""


def run(make_store: MakeStore) -> None:
    """Run all cases; `make_store` returns a new, empty store each time."""
    for case in CASES:
        case(make_store)
