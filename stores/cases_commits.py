"""Conformance: what is committed comes back bit for bit, and misfits are refused whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from longmem.errors import (
    InputError,
    StaleWriterError,
)
from longmem.store import Commit
from longmem.stores.cases import MakeStore, case, closing, raises
from longmem.stores.header import DTYPES
from longmem.stores.samples import (
    assert_equal,
    assert_holds,
    assert_same,
    fill,
    sample_commit,
    sample_info,
    sample_turns,
)


@case
def a_new_session_is_empty(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info(head=3, n_turns=9, n_tokens=4, bytes=5))
        info = handle.info
        assert (info.head, info.n_turns, info.n_tokens) == (0, 0, 0)
        assert info.fingerprint == sample_info().fingerprint
        assert info.layout == sample_info().layout
        assert handle.snapshot() is None
        assert handle.turns() == []
        assert handle.read_kv(0, 0, 0).shape == (0, 2, 2, 8)


@case
def a_commit_comes_back_bit_for_bit(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        commit = sample_commit(handle.info)
        assert handle.commit(commit) == 1
        assert_holds(handle, [commit])


@case
def blocks_of_all_commits_are_joined_in_order(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        commits = fill(handle, 5)
        late = sample_commit(handle.info)
        late = replace(late, blocks={**late.blocks, "late": torch.ones(2, 3)})
        handle.commit(late)
        assert_holds(handle, [*commits, late])


@case
def state_is_that_of_the_last_commit_alone(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        fill(handle, 2)
        last = replace(sample_commit(handle.info), state={"only": torch.tensor([1.5])})
        handle.commit(last)
        snapshot = handle.snapshot()
        assert snapshot is not None
        assert_same(snapshot.state, last.state)


@case
def a_reopened_session_goes_on_where_it_stopped(make_store: MakeStore) -> None:
    with make_store() as store:
        with closing(store.create(sample_info())) as handle:
            commits = fill(handle, 3)
        with closing(store.open("alice")) as handle:
            assert_holds(handle, commits)
            commits += fill(handle, 2)
            assert_holds(handle, commits)


@case
def kv_rows_are_found_across_commits(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        commits = fill(handle, 1, [200]) + fill(handle, 3, [3]) + fill(handle, 1, [150, 1])
        for layer in range(3):
            rows = torch.cat([commit.kv[layer] for commit in commits])
            for start, stop in [(0, 1), (63, 65), (190, 215), (199, 203), (205, 360), (359, 360)]:
                assert_equal(handle.read_kv(layer, start, stop), rows[start:stop])


@case
def rows_that_were_never_committed_are_an_index_error(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        fill(handle, 1)
        for layer, start, stop in [(0, 0, 13), (0, -1, 3), (0, 5, 4), (3, 0, 1), (-1, 0, 1)]:
            with raises(IndexError):
                handle.read_kv(layer, start, stop)


@case
def every_dtype_is_kept(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info(dtype="bfloat16"))
        raw = torch.arange(64, dtype=torch.uint8) % 2  # bits that are valid in every dtype
        state = {str(dtype): raw.view(dtype) for dtype in DTYPES.values()}
        commit = replace(sample_commit(handle.info), state=state)
        handle.commit(commit)
        assert_holds(handle, [commit])


@case
def tensors_without_elements_or_dimensions_are_kept(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        first = replace(
            sample_commit(handle.info),
            blocks={"table": torch.empty(0, 2, dtype=torch.int64)},
            state={"scalar": torch.tensor(7), "empty": torch.empty(3, 0), "none": torch.empty(0)},
        )
        handle.commit(first)
        second = sample_commit(handle.info, lengths=[])
        handle.commit(second)
        third = sample_commit(handle.info, lengths=[0, 4, 0])
        handle.commit(third)
        assert_holds(handle, [first, second, third])


@case
def views_and_shared_memory_are_stored_as_they_look(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        base = torch.randn(6, 4)
        state = {"a": base, "b": base.t(), "c": base[1:3], "d": base[0, 0].expand(5)}
        commit = replace(sample_commit(handle.info), state=state)
        handle.commit(commit)
        assert_holds(handle, [commit])


@case
def a_store_keeps_copies(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        given, kept = sample_commit(handle.info), sample_commit(handle.info)
        handle.commit(given)
        for tensor in [*given.kv, *given.blocks.values(), *given.state.values()]:
            tensor.zero_()
        snapshot = handle.snapshot()
        assert snapshot is not None
        for tensor in [*snapshot.blocks.values(), *snapshot.state.values()]:
            tensor.zero_()
        handle.read_kv(0, 0, 5).zero_()
        assert_holds(handle, [kept])


@case
def turns_are_sliced_by_index(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        turns = [turn for commit in fill(handle, 3) for turn in commit.turns]
        assert handle.turns(2) == turns[2:]
        assert handle.turns(1, 4) == turns[1:4]
        assert handle.turns(4, 99) == turns[4:]
        assert handle.turns(3, 3) == handle.turns(5, 2) == handle.turns(99) == []


@case
def turns_are_found_by_token_position(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        fill(handle, 2, [3, 0, 4])
        found = handle.turns_at([13, 0, 2, 3, 6, 7, 3])
        assert [turn.index for turn in found] == [5, 0, 0, 2, 2, 3, 2]
        assert handle.turns_at([]) == []
        for position in (-1, 14):
            with raises(IndexError):
                handle.turns_at([position])


@case
def any_text_comes_back(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        texts = ["", "a\0b", "'; DROP TABLE turns; --", "é e\u0301 🍵\r\n\t", "x" * 100_000]
        turns = sample_turns(handle.info, [1] * len(texts))
        turns = [replace(turn, text=text) for turn, text in zip(turns, texts, strict=True)]
        commit = replace(sample_commit(handle.info, [1] * len(texts)), turns=turns)
        handle.commit(commit)
        assert [turn.text for turn in handle.turns()] == texts


@case
def a_commit_on_another_head_is_refused(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        commits = fill(handle, 2)
        for parent in (0, 1, 3):
            with raises(StaleWriterError):
                handle.commit(replace(sample_commit(handle.info), parent=parent))
        assert_holds(handle, commits)
        assert_holds(handle, [*commits, *fill(handle, 1)])


@case
def a_commit_that_does_not_fit_is_refused_whole(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        commits = fill(handle, 1)
        for bad in _misfits(sample_commit(handle.info)):
            with raises(InputError):
                handle.commit(bad)
        assert_holds(handle, commits)
        assert_holds(handle, [*commits, *fill(handle, 1)])


def _misfits(good: Commit) -> Iterator[Commit]:
    first, second = good.turns
    yield replace(good, start=good.start + 1)
    yield replace(good, stop=good.stop + 1)
    yield replace(good, turns=[first])
    yield replace(good, turns=[first, replace(second, index=second.index + 1)])
    yield replace(good, turns=[first, replace(second, start=second.start + 1)])
    yield replace(good, turns=[first, replace(second, spans=((1, 1),))])
    yield replace(good, turns=[first, replace(second, text="lone \ud800 surrogate")])
    yield replace(good, turns=[first, replace(second, ids=(2**31, 1, 2, 3, 4))])
    yield replace(good, turns=[first, replace(second, extra={"not json": object()})])
    yield replace(good, kv=good.kv[:2])
    yield replace(good, kv=[rows[:-1] for rows in good.kv])
    yield replace(good, kv=[rows.double() for rows in good.kv])
    yield replace(good, state={"scores": torch.zeros(2, dtype=torch.complex128)})
    yield replace(good, blocks={"table": torch.tensor(1)})
