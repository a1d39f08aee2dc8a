"""Conformance: going back to an earlier head."""

from __future__ import annotations

from dataclasses import replace

from longmem.errors import InputError, StaleWriterError
from longmem.store import CommitPoint, Record
from longmem.stores.cases import MakeStore, case, closing, raises
from longmem.stores.samples import assert_equal, assert_holds, fill, sample_commit, sample_info


@case
def points_tell_where_commits_end(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        assert handle.points() == []
        assert handle.point(7) == CommitPoint(0, 0, 0)
        fill(handle, 2)
        fill(handle, 1, [4, 1, 2])
        ends = [CommitPoint(1, 2, 12), CommitPoint(2, 4, 24), CommitPoint(3, 7, 31)]
        assert handle.points() == ends
        assert handle.points(2) == ends[2:]
        assert handle.points(3) == []
        expected = [0, 0, 1, 1, 2, 2, 2, 3, 3]
        assert [handle.point(n_turns).head for n_turns in range(9)] == expected
        assert handle.point(6) == ends[1]


@case
def a_rollback_leaves_what_was_there_at_that_head(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        commits, infos = [], [handle.info]
        for _ in range(9):
            commits += fill(handle, 1)
            infos.append(handle.info)
        for head in (9, 8, 6, 5, 2):
            handle.rollback(head)
            assert_holds(handle, commits[:head])
            (rows,) = handle.read_blocks("representatives", [(0, head)])
            assert_equal(rows, handle.snapshot().blocks["representatives"])  # type: ignore[union-attr]
            assert handle.points() == [CommitPoint(i, 2 * i, 12 * i) for i in range(1, head + 1)]
            assert store.verify() == []
        assert store.sessions() == [handle.info]
        handle.close()
        with closing(store.open("alice")) as handle:
            assert_holds(handle, commits[:2])
            handle.rollback(0)
            assert handle.snapshot() is None
            assert handle.turns() == []
            assert (handle.info.n_tokens, handle.info.bytes) == (0, 0)
            assert handle.info.charged == infos[0].charged
        assert store.verify() == []


@case
def commits_follow_a_rollback(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        commits = fill(handle, 7)
        for head, lengths in ((5, [3]), (2, [9, 1]), (4, [1]), (0, [4, 4])):
            handle.rollback(head)
            commits = commits[:head] + fill(handle, 4, lengths)
            assert_holds(handle, commits)
        assert store.verify() == []
        handle.close()
        with closing(store.open("alice")) as handle:
            assert_holds(handle, commits)


@case
def a_head_that_never_was_is_refused(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        commits = fill(handle, 2)
        for head in (-1, 3):
            with raises(InputError):
                handle.rollback(head)
            with raises(InputError):
                store.fork("alice", sample_info("bob"), head)
            with raises(InputError):
                store.stage(handle, sample_info(), head)
        assert_holds(handle, commits)
        assert [info.id for info in store.sessions()] == ["alice"]


@case
def a_commit_that_was_built_on_a_dropped_head_is_stale(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        fill(handle, 2)
        late = sample_commit(handle.info)
        handle.rollback(1)
        with raises(StaleWriterError):
            handle.commit(late)


@case
def a_rollback_gives_back_what_the_session_was_charged_with(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        fill(handle, 2)
        before = handle.info
        fill(handle, 1)
        room = handle.info.charged + 100  # a commit's size is estimated before it is written
        handle.limit(max_bytes=room, ttl=None)
        handle.rollback(2)
        assert handle.info.charged <= before.charged
        fill(handle, 1)
        assert handle.info.charged <= room


@case
def records_of_dropped_commits_go(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        store.records.put("space", "of the session", 0, session="alice")
        for number in range(1, 5):
            record = Record("space", f"reply {number}", {"n": number})
            handle.commit(replace(sample_commit(handle.info), records=[record]))
            assert store.records.get("space", record.key) == {"n": number}
        handle.rollback(2)
        kept = ["of the session", "reply 1", "reply 2"]
        assert [key for key, _ in store.records.list("space")] == kept
        handle.close()
        assert store.verify() == []
        store.delete("alice")
        assert store.records.list("space") == []


@case
def a_commit_with_a_bad_record_stores_nothing(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        records = [Record("space", "good", 1), Record("space", "bad", {1, 2})]
        with raises(InputError):
            handle.commit(replace(sample_commit(handle.info), records=records))
        assert handle.info.head == 0
        assert store.records.list("space") == []
        assert_holds(handle, fill(handle, 1))
