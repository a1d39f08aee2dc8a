"""Conformance: sessions that begin with commits of another."""

from __future__ import annotations

from dataclasses import replace

from longmem.errors import InputError, SessionInUseError, SessionNotFoundError, StoreFullError
from longmem.store import Record
from longmem.stores.cases import MakeStore, case, closing, raises
from longmem.stores.samples import assert_holds, fill, sample_commit, sample_info


@case
def a_fork_begins_where_the_other_session_was(make_store: MakeStore) -> None:
    with make_store() as store:
        source = store.create(sample_info(fingerprint={"model": "m7"}))
        commits = fill(source, 7)
        for head in range(8):
            info = sample_info(f"fork {head}", owner="else", metadata={"n": head}, ttl=60.0)
            with closing(store.fork("alice", info, head)) as fork:
                if head:
                    assert_holds(fork, commits[:head])
                else:
                    assert fork.snapshot() is None
                assert (fork.info.parent, fork.info.parent_turn) == ("alice", 2 * head - 1)
                assert fork.info.fingerprint == {"model": "m7"}
                assert (fork.info.owner, fork.info.ttl) == ("else", 60.0)
                assert fork.info.metadata == {"n": head}
                assert store.info(fork.info.id) == fork.info
        assert_holds(source, commits)
        assert (source.info.parent, source.info.parent_turn) == (None, None)
        assert store.verify() == []


@case
def a_fork_and_its_source_go_on_independently(make_store: MakeStore) -> None:
    with make_store() as store:
        source = store.create(sample_info())
        of_source = fill(source, 6)
        fork = store.fork("alice", sample_info("bob"), 4)
        of_fork = of_source[:4] + fill(fork, 3, [2, 3])
        of_source += fill(source, 3, [8])
        assert_holds(fork, of_fork)
        assert_holds(source, of_source)
        source.rollback(2)
        of_source = of_source[:2] + fill(source, 3, [5])
        assert_holds(fork, of_fork)
        fork.rollback(3)
        of_fork = of_fork[:3] + fill(fork, 2, [1])
        assert_holds(source, of_source)
        assert store.verify() == []
        source.close()
        fork.close()
        for name, commits in (("alice", of_source), ("bob", of_fork)):
            with closing(store.open(name)) as handle:
                assert_holds(handle, commits)


@case
def forks_of_forks_outlive_what_they_came_from(make_store: MakeStore) -> None:
    with make_store() as store:
        with closing(store.create(sample_info())) as handle:
            commits = fill(handle, 5)
        with closing(store.fork("alice", sample_info("bob"), 4)) as handle:
            of_bob = commits[:4] + fill(handle, 3, [6])
        handle = store.fork("bob", sample_info("carol"), 6)
        of_carol = of_bob[:6] + fill(handle, 1, [3])
        store.delete("alice")
        assert_holds(handle, of_carol)
        store.erase("bob")
        assert_holds(handle, of_carol)
        assert (handle.info.parent, handle.info.parent_turn) == ("bob", 9)
        assert store.verify() == []
        with closing(store.create(sample_info("alice"))) as again:
            of_alice = fill(again, 2, [1])
        of_carol += fill(handle, 1)
        handle.close()
        with closing(store.fork("carol", sample_info("bob"), 3)) as fork:
            assert_holds(fork, commits[:3])
        for name, expected in (("carol", of_carol), ("alice", of_alice)):
            with closing(store.open(name)) as handle:
                assert_holds(handle, expected)
        assert store.verify() == []


@case
def a_source_outlives_its_fork(make_store: MakeStore) -> None:
    with make_store() as store:
        source = store.create(sample_info())
        commits = fill(source, 5)
        with closing(store.fork("alice", sample_info("bob"), 3)) as fork:
            fill(fork, 2)
        store.erase("bob")
        assert_holds(source, commits)
        commits += fill(source, 2)
        assert_holds(source, commits)
        assert store.verify() == []


@case
def a_fork_needs_a_source_and_an_id_of_its_own(make_store: MakeStore) -> None:
    with make_store() as store:
        store.create(sample_info())
        with closing(store.create(sample_info("bob"))):
            pass
        with raises(SessionNotFoundError):
            store.fork("nobody", sample_info("carol"), 0)
        for taken in ("alice", "bob"):
            with raises(SessionInUseError):
                store.fork("alice", sample_info(taken), 0)
        with raises(InputError):
            store.fork("alice", sample_info("\udc80"), 0)
        assert {info.id for info in store.sessions()} == {"alice", "bob"}


@case
def a_fork_is_charged_with_what_it_shares(make_store: MakeStore) -> None:
    with make_store() as store:
        source = store.create(sample_info(owner="one"))
        fill(source, 3)
        with closing(store.fork("alice", sample_info("twin", owner="two"), 3)) as fork:
            assert fork.info.bytes == source.info.bytes
            assert abs(fork.info.charged - source.info.charged) < 10  # the ids' lengths differ
        tight = sample_info("tight", max_bytes=source.info.charged // 2)
        with raises(StoreFullError):
            store.fork("alice", tight, 3)
        assert {info.id for info in store.sessions()} == {"alice", "twin"}
        with closing(store.fork("alice", tight, 0)):
            pass
        assert store.verify() == []


@case
def records_stay_with_the_source_of_a_fork(make_store: MakeStore) -> None:
    with make_store() as store:
        source = store.create(sample_info())
        record = Record("space", "key", 1)
        source.commit(replace(sample_commit(source.info), records=[record]))
        with closing(store.fork("alice", sample_info("bob"), 1)) as fork:
            fork.rollback(0)
        store.delete("bob")
        assert store.records.list("space") == [("key", 1)]


@case
def a_stand_in_begins_with_commits_it_shares(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        old = fill(handle, 6)
        staged = store.stage(handle, sample_info(fingerprint={"model": "m2"}), 4)
        assert_holds(staged, old[:4])
        new = old[:4] + fill(staged, 2, [2])
        assert_holds(handle, old)
        with raises(InputError):
            store.stage(handle, sample_info(layout=((4, 2),)), 1)
        store.publish(handle, staged)
        assert_holds(handle, new)
        new += fill(handle, 1)
        handle.close()
        with closing(store.open("alice")) as handle:
            assert_holds(handle, new)
            assert handle.info.fingerprint == {"model": "m2"}
        assert store.verify() == []


@case
def a_stand_in_with_shared_commits_that_is_dropped_leaves_them(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        commits = fill(handle, 5)
        staged = store.stage(handle, handle.info, 3)
        fill(staged, 2, [2])
        staged.close()
        assert_holds(handle, commits)
        assert store.verify() == []


@case
def a_rollback_can_be_taken_back_with_a_stand_in(make_store: MakeStore) -> None:
    with make_store() as store:
        source = store.create(sample_info())
        fill(source, 2)
        handle = store.fork("alice", sample_info("bob"), 1)
        commits = [*fill(handle, 4)]
        whole = store.stage(handle, handle.info, 5)
        handle.rollback(2)
        store.publish(handle, whole)
        assert handle.info.head == 5
        assert handle.turns(2) == [turn for commit in commits for turn in commit.turns]
        assert (handle.info.parent, handle.info.parent_turn) == ("alice", 1)
        assert store.verify() == []


@case
def records_move_to_the_commits_of_the_session_that_took_over(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        for number in range(1, 6):
            record = Record("space", str(number), number)
            handle.commit(replace(sample_commit(handle.info), records=[record]))
        store.records.put("space", "of the session", 0, session="alice")
        staged = store.stage(handle, sample_info(), 2)
        with raises(InputError):
            staged.commit(replace(sample_commit(staged.info), records=[Record("space", "new", 9)]))
        fill(staged, 2)
        heads, last = {3: None, 4: 3, 5: 4}, Record("space", "with it", [1])
        with raises(InputError):
            store.publish(handle, staged, heads=heads, records=[last, Record("space", "1", {2})])
        assert handle.info.head == 5
        assert store.records.get("space", "1") == 1
        store.publish(handle, staged, heads=heads, records=[last])
        assert store.records.get("space", "with it") == [1]
        expected = ["1", "2", "4", "5", "of the session", "with it"]
        assert [key for key, _ in store.records.list("space")] == expected
        handle.rollback(3)
        expected.remove("5")
        expected.remove("with it")
        assert [key for key, _ in store.records.list("space")] == expected
        handle.rollback(2)
        expected.remove("4")
        assert [key for key, _ in store.records.list("space")] == expected
        assert store.verify() == []


@case
def a_session_is_found_by_its_id(make_store: MakeStore) -> None:
    with make_store() as store:
        with raises(SessionNotFoundError):
            store.info("alice")
        handle = store.create(sample_info())
        fill(handle, 2)
        assert store.info("alice") == handle.info
        staged = store.stage(handle, sample_info())
        assert store.info("alice") == handle.info
        staged.close()
        handle.close()
        assert store.info("alice").head == 2
        store.erase("alice")
        with raises(SessionNotFoundError):
            store.info("alice")


@case
def an_erased_session_is_gone_and_the_others_stay(make_store: MakeStore) -> None:
    with make_store() as store:
        with closing(store.create(sample_info())) as handle:
            fill(handle, 3)
            with raises(SessionInUseError):
                store.erase("alice")
        other = store.create(sample_info("bob"))
        kept = fill(other, 3)
        store.records.put("space", "key", 1, session="alice")
        store.erase("alice")
        with raises(SessionNotFoundError):
            store.erase("alice")
        store.scrub()
        assert [info.id for info in store.sessions()] == ["bob"]
        assert store.records.list("space") == []
        kept += fill(other, 1)
        assert_holds(other, kept)
        assert store.verify() == []
