"""Conformance: limits of bytes, and sessions that expire."""

from __future__ import annotations

from dataclasses import replace

from longmem.errors import (
    ConfigError,
    SessionClosedError,
    SessionNotFoundError,
    StaleWriterError,
    StoreFullError,
)
from longmem.store import SessionHandle
from longmem.stores.cases import MakeStore, case, closing, raises
from longmem.stores.samples import assert_holds, fill, sample_commit, sample_info

FAR = 10_000.0
"""Seconds by which the cases move the clock."""


@case
def a_session_is_charged_for_what_it_holds(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        empty = handle.info.charged
        assert empty > len("alice")
        commit = fill(handle, 1)[0]
        tensors = [*commit.kv, *commit.blocks.values(), *commit.state.values()]
        data = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        texts = sum(len(turn.text.encode()) + 4 * len(turn.ids) for turn in commit.turns)
        assert handle.info.charged > empty + data + texts
        assert store.sessions() == [handle.info]
        charged = handle.info.charged
        handle.close()
        with closing(store.open("alice")) as handle:
            assert handle.info.charged == charged


@case
def a_commit_above_the_limit_is_refused_whole(make_store: MakeStore) -> None:
    with make_store() as store:
        handle, other = store.create(sample_info()), store.create(sample_info("bob"))
        commits = fill(handle, 2)
        before = handle.info
        handle.limit(max_bytes=before.charged + 3_000, ttl=None)
        with raises(StoreFullError):
            handle.commit(sample_commit(handle.info, [400]))
        assert handle.info == replace(before, max_bytes=before.charged + 3_000)
        assert_holds(handle, commits)
        commits += fill(handle, 1, [1])  # a smaller one fits
        assert_holds(handle, commits)
        assert_holds(other, fill(other, 1, [400]))
        handle.limit(max_bytes=None, ttl=None)
        assert_holds(handle, [*commits, *fill(handle, 1, [400])])
        assert store.verify() == []


@case
def a_limit_below_what_a_session_holds_lets_it_be_read(make_store: MakeStore) -> None:
    with make_store() as store:
        with closing(store.create(sample_info())) as handle:
            commits = fill(handle, 2)
            handle.limit(max_bytes=1, ttl=None)
        with closing(store.open("alice")) as handle:
            assert handle.info.max_bytes == 1
            assert_holds(handle, commits)
            with raises(StoreFullError):
                handle.commit(sample_commit(handle.info, [1]))
            assert_holds(handle, commits)


@case
def limits_stay_with_their_session(make_store: MakeStore) -> None:
    with make_store() as store:
        with closing(store.create(sample_info(max_bytes=10_000, ttl=60.0))) as handle:
            handle.limit(max_bytes=20_000, ttl=30.5)
            assert (handle.info.max_bytes, handle.info.ttl) == (20_000, 30.5)
        assert [(info.max_bytes, info.ttl) for info in store.sessions()] == [(20_000, 30.5)]
        with closing(store.open("alice")) as handle:
            assert handle.info.expires_at == handle.info.updated_at + 30.5
            staged = store.stage(handle, handle.info)
            fill(staged, 1)
            store.publish(handle, staged)
            assert (handle.info.max_bytes, handle.info.ttl) == (20_000, 30.5)


@case
def what_is_no_limit_is_refused(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        for size in (0, -1):
            with raises(ConfigError):
                handle.limit(max_bytes=size, ttl=None)
        for seconds in (0.0, -1.0, float("nan")):
            with raises(ConfigError):
                handle.limit(max_bytes=None, ttl=seconds)
        assert (handle.info.max_bytes, handle.info.ttl) == (None, None)
        handle.close()
        with raises(SessionClosedError):
            handle.limit(max_bytes=1, ttl=None)


@case
def a_stand_in_whose_session_was_deleted_takes_no_limit(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        staged = store.stage(handle, sample_info())
        handle.close()
        store.delete("alice")
        with raises(StaleWriterError):
            staged.limit(max_bytes=1, ttl=None)


@case
def expired_sessions_are_swept_unless_they_are_open(make_store: MakeStore) -> None:
    with make_store() as store:
        handles = {name: store.create(sample_info(name)) for name in ("a", "b", "open", "kept")}
        for handle in handles.values():
            fill(handle, 1)
        for name, ttl in (("a", 20.0), ("b", 10.0), ("open", 10.0)):
            handles[name].limit(max_bytes=None, ttl=ttl)
        store.records.put("space", "of a", 1, session="a")
        now = handles["kept"].info.updated_at
        _close(handles["a"], handles["b"], handles["kept"])
        assert store.sweep(now) == []
        assert store.sweep(now + FAR) == ["b", "a"]
        assert store.sweep(now + FAR) == []
        assert {info.id for info in store.sessions()} == {"open", "kept"}
        assert store.records.list("space") == []
        with raises(SessionNotFoundError):
            store.open("a")
        fill(handles["open"], 1)
        handles["open"].close()
        assert store.sweep(now + FAR) == ["open"]
        assert store.verify() == []


@case
def a_commit_puts_off_the_expiry(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info(ttl=FAR))
        created = handle.info.updated_at
        assert handle.info.expired(created + FAR)
        commits = fill(handle, 1)
        handle.close()
        assert store.sweep(created + 2 * FAR) == []
        with closing(store.open("alice")) as handle:
            assert_holds(handle, commits)


@case
def a_swept_session_frees_what_it_was_charged_with(make_store: MakeStore) -> None:
    with make_store() as store:
        charged = []
        for _ in range(2):
            with closing(store.create(sample_info(ttl=FAR))) as handle:
                fill(handle, 2)
                charged.append(handle.info.charged)
                over = handle.info.updated_at + FAR
            assert store.sweep() == []
            assert store.sweep(over) == ["alice"]
        assert charged[0] == charged[1]
        assert store.sessions() == []
        assert store.verify() == []


def _close(*handles: SessionHandle) -> None:
    for handle in handles:
        handle.close()
