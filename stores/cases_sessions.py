"""Conformance: claiming, listing, deleting and rebuilding sessions."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

from longmem.errors import (
    InputError,
    SessionClosedError,
    SessionInUseError,
    SessionNotFoundError,
    StaleWriterError,
    StoreError,
)
from longmem.store import Commit, SessionHandle
from longmem.stores.cases import MakeStore, assert_closed, case, closing, raises
from longmem.stores.samples import (
    assert_holds,
    fill,
    sample_commit,
    sample_info,
)


@case
def a_session_opens_once(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        with raises(SessionInUseError):
            store.open("alice")
        with raises(SessionInUseError):
            store.delete("alice")
        handle.close()
        with raises(SessionInUseError):
            store.create(sample_info())
        store.open("alice").close()


@case
def a_closed_handle_refuses_everything(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        commit = sample_commit(handle.info)
        handle.close()
        handle.close()
        assert_closed(handle, commit)
        with raises(SessionClosedError):
            store.stage(handle, sample_info())


@case
def closing_the_store_closes_its_sessions(make_store: MakeStore) -> None:
    store = make_store()
    handle = store.create(sample_info())
    commit = sample_commit(handle.info)
    store.close()
    store.close()
    assert_closed(handle, commit)
    handle.close()
    with raises(StoreError):
        store.create(sample_info("bob"))


@case
def an_unknown_session_is_not_found(make_store: MakeStore) -> None:
    with make_store() as store:
        store.create(sample_info())
        uses: list[Callable[[str], Any]] = [store.open, store.delete, store.verify]
        for use in uses:
            with raises(SessionNotFoundError):
                use("bob")


@case
def a_session_id_is_any_text(make_store: MakeStore) -> None:
    ids = ["../../etc/passwd", "/", "a/b", "..", "%", "a'b\"c", "茶🍵", "A", "a", "x" * 5_000]
    with make_store() as store:
        made = {}
        for name in ids:
            with closing(store.create(sample_info(name))) as handle:
                made[name] = fill(handle, 1)
        assert {info.id for info in store.sessions()} == set(ids)
        for name, commits in made.items():
            with closing(store.open(name)) as handle:
                assert_holds(handle, commits)


@case
def sessions_are_listed_by_owner_the_last_used_first(make_store: MakeStore) -> None:
    with make_store() as store:
        handles = {name: store.create(sample_info(name, owner=name[0])) for name in ("a1", "b1")}
        handles["a2"] = store.create(sample_info("a2", owner="a"))
        handles["none"] = store.create(sample_info("none", owner=None))
        for name in ("a2", "none", "b1", "a1"):
            fill(handles[name], 1)
        assert [info.id for info in store.sessions()] == ["a1", "b1", "none", "a2"]
        assert [info.id for info in store.sessions(owner="a")] == ["a1", "a2"]
        assert store.sessions(owner="c") == []
        listed = store.sessions(owner="b")[0]
        assert listed == handles["b1"].info
        assert (listed.head, listed.n_turns, listed.n_tokens) == (1, 2, 12)
        assert listed.metadata == sample_info().metadata


@case
def sessions_do_not_see_each_other(make_store: MakeStore) -> None:
    with make_store() as store:
        alice, bob = store.create(sample_info("alice")), store.create(sample_info("bob"))
        of_alice, of_bob = fill(alice, 1, [3]), fill(bob, 2, [5])
        of_alice += fill(alice, 2, [4])
        assert_holds(alice, of_alice)
        assert_holds(bob, of_bob)


@case
def a_deleted_session_leaves_the_others_alone(make_store: MakeStore) -> None:
    with make_store() as store:
        with closing(store.create(sample_info("alice"))) as handle:
            fill(handle, 2)
        with closing(store.create(sample_info("bob"))) as handle:
            kept = fill(handle, 2)
        store.records.put("space", "of alice", 1, session="alice")
        store.records.put("space", "of bob", 2, session="bob")
        store.records.put("space", "of nobody", 3)
        store.delete("alice")
        assert [info.id for info in store.sessions()] == ["bob"]
        assert store.records.list("space") == [("of bob", 2), ("of nobody", 3)]
        with raises(SessionNotFoundError):
            store.open("alice")
        with closing(store.open("bob")) as handle:
            assert_holds(handle, kept)
        with closing(store.create(sample_info("alice"))) as handle:
            assert handle.snapshot() is None
            assert handle.turns() == []


@case
def threads_commit_to_their_sessions_at_once(make_store: MakeStore) -> None:
    with make_store() as store:
        handles = [store.create(sample_info(str(number))) for number in range(4)]
        commits: dict[str, list[Commit]] = {}

        def work(handle: SessionHandle) -> None:
            commits[handle.info.id] = fill(handle, 5)
            assert_holds(handle, commits[handle.info.id])

        threads = [threading.Thread(target=work, args=[handle]) for handle in handles]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for handle in handles:
            assert_holds(handle, commits[handle.info.id])
        assert store.verify() == []


@case
def a_staged_session_is_hidden_until_published(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        old = fill(handle, 2)
        store.records.put("space", "kept", 1, session="alice")
        staged = store.stage(handle, sample_info(fingerprint={"model": "m2"}, layout=((4, 2),)))
        assert staged.info.head == 0
        new = fill(staged, 3, [9])
        assert_holds(handle, old)
        assert [(info.id, info.head) for info in store.sessions()] == [("alice", 2)]
        store.publish(handle, staged)
        assert_closed(staged, new[-1])
        assert handle.info.fingerprint == {"model": "m2"}
        assert handle.info.id == "alice"
        assert_holds(handle, new)
        assert [(info.id, info.head) for info in store.sessions()] == [("alice", 3)]
        assert store.records.get("space", "kept") == 1
        new += fill(handle, 1, [2])
        handle.close()
        with closing(store.open("alice")) as handle:
            assert_holds(handle, new)
        assert store.verify() == []


@case
def a_staged_session_that_is_closed_is_dropped(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        commits = fill(handle, 2)
        staged = store.stage(handle, sample_info())
        last = fill(staged, 1)[-1]
        staged.close()
        assert_closed(staged, last)
        with raises(SessionClosedError):
            store.publish(handle, staged)
        assert_holds(handle, commits)
        assert store.verify() == []


@case
def a_staged_session_goes_with_the_session_it_stands_in_for(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        staged = store.stage(handle, sample_info())
        fill(staged, 1)
        handle.close()
        store.delete("alice")
        with raises(StaleWriterError):
            fill(staged, 1)
        staged.close()
        assert store.sessions() == []
        assert store.verify() == []


@case
def only_a_staged_session_can_be_published(make_store: MakeStore) -> None:
    with make_store() as store:
        alice, bob = store.create(sample_info("alice")), store.create(sample_info("bob"))
        of_alice, of_bob = fill(alice, 1), fill(bob, 2)
        with raises(InputError):
            store.publish(alice, bob)
        with raises(InputError):
            store.publish(alice, alice)
        with raises(InputError):
            store.publish(alice, store.stage(bob, sample_info()))
        assert_holds(alice, of_alice)
        assert_holds(bob, of_bob)


@case
def a_handle_that_was_dropped_claims_nothing(make_store: MakeStore) -> None:
    with make_store() as store:
        commits = fill(store.create(sample_info()), 2)
        gc.collect()
        assert_holds(store.open("alice"), commits)
