"""Conformance: append-only tensors and K/V rows are read span by span, and after merging too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from longmem.store import Commit, SessionHandle
from longmem.stores.cases import MakeStore, case, closing, raises
from longmem.stores.samples import (
    assert_equal,
    assert_holds,
    assert_same,
    fill,
    sample_commit,
    sample_info,
)


@case
def lazy_tensors_are_counted_and_not_read(make_store: MakeStore) -> None:
    with make_store() as store:
        with closing(store.create(sample_info())) as handle:
            commits = with_codes(handle, [3, 0, 5])
        handle = store.open("alice")
        whole, lazy = handle.snapshot(), handle.snapshot(lazy=("codes.", "rep"))
        assert whole is not None
        assert lazy is not None
        assert whole.lazy == {}
        assert lazy.lazy == {"codes.0": 8, "representatives": 3}
        assert_same(lazy.blocks, {"table": whole.blocks["table"]})
        assert_same(lazy.state, whole.state)
        assert_holds(handle, commits)


@case
def rows_of_an_append_only_tensor_are_read_span_by_span(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        commits = with_codes(handle, [300, 0, 2, 700])
        commits += fill(handle, 1)
        rows = joined(commits, "codes.0")
        spans = [(0, 1), (299, 303), (5, 5), (0, 1002), (301, 302), (900, 1002), (1002, 1002)]
        for found, (start, stop) in zip(handle.read_blocks("codes.0", spans), spans, strict=True):
            assert_equal(found, rows[start:stop])
        assert handle.read_blocks("codes.0", []) == []
        (table,) = handle.read_blocks("table", [(1, 4)])
        assert_equal(table, joined(commits, "table")[1:4])


@case
def rows_that_were_never_appended_are_an_index_error(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        with_codes(handle, [3, 2])
        for span in [(0, 6), (-1, 2), (3, 2)]:
            with raises(IndexError):
                handle.read_blocks("codes.0", [(0, 1), span])
        for span in [(0, 1), (0, 0)]:
            with raises(IndexError):
                handle.read_blocks("other", [span])


@case
def many_spans_of_kv_are_read_at_once(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        commits = fill(handle, 1, [200]) + fill(handle, 5, [3]) + fill(handle, 1, [150, 1])
        spans = [(350, 366), (0, 3), (190, 215), (2, 4), (7, 7), (0, 366), (199, 203)]
        for layer in range(3):
            rows = torch.cat([commit.kv[layer] for commit in commits])
            for found, span in zip(handle.read_spans(layer, spans), spans, strict=True):
                assert_equal(found, rows[slice(*span)])
        assert handle.read_spans(0, []) == []
        for layer, span in [(0, (0, 367)), (3, (0, 1))]:
            with raises(IndexError):
                handle.read_spans(layer, [(0, 1), span])


@case
def what_is_read_is_the_readers_own(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        commits = with_codes(handle, [8])
        for found in [
            *handle.read_blocks("codes.0", [(0, 4), (2, 8), (0, 8)]),
            *handle.read_spans(0, [(0, 4), (2, 12), (0, 12)]),
        ]:
            assert found.untyped_storage().nbytes() == found.nbytes, "it holds more than its rows"
            found.zero_()
        assert_holds(handle, commits)


@case
def merging_changes_nothing_that_is_held(make_store: MakeStore) -> None:
    with make_store() as store:
        with closing(store.create(sample_info())) as handle:
            commits = with_codes(handle, [3, 0, 5, 1])
            merge_all(handle, commits[2].stop)
            assert_holds(handle, commits)
            commits += with_codes(handle, [2])
            merge_all(handle, handle.info.n_tokens)
            assert_holds(handle, commits)
        with closing(store.open("alice")) as handle:
            assert_holds(handle, commits)
            commits += with_codes(handle, [4])
            assert_holds(handle, commits)
            (codes,) = handle.read_blocks("codes.0", [(1, 14)])
            assert_equal(codes, joined(commits, "codes.0")[1:14])
        assert store.verify() == []


def merge_all(handle: SessionHandle, upto: int) -> int:
    """Merge until there is nothing to merge; returns how often something was."""
    merged = 0
    while handle.merge(upto):
        merged += 1
    return merged


def with_codes(handle: SessionHandle, rows: Sequence[int]) -> list[Commit]:
    """One commit for each number of rows of the append-only tensor "codes.0" ``[n, 3, 5]``."""
    made: list[Commit] = []
    for count in rows:
        commit = sample_commit(handle.info)
        codes = torch.arange(count * 15).remainder(251).byte().view(count, 3, 5) + len(made)
        commit = replace(commit, blocks={**commit.blocks, "codes.0": codes})
        handle.commit(commit)
        made.append(commit)
    return made


def joined(commits: Sequence[Commit], name: str) -> Tensor:
    """An append-only tensor over all commits."""
    return torch.cat([commit.blocks[name] for commit in commits if name in commit.blocks])
