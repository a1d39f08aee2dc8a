"""kill -9 in the middle of forks, rollbacks, rebuilds and trims: each happened, or did not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from stores_faulty import Step
from stores_verbs import MERGE_BYTES, Operation, Performer, Sessions, after, operations

from longmem.stores import SQLiteStore
from longmem.stores.samples import assert_holds

KILLS = int(os.environ.get("LONGMEM_KILLS", "12"))

FILLED: list[Operation] = [
    ["create", "alice"],
    *[["commit", "alice", 7, 5]] * 7,
    ["merge", "alice"],
    ["merge", "alice"],
    ["fork", "alice", "bob", 2],
]
"""Two merged files of three commits each, a single one, and a fork of the first two commits."""

TO_MIDDLE: Operation = ["rollback", "alice", 4]
STEPS: dict[str, tuple[Operation, Step]] = {
    "rollback: nothing done": (TO_MIDDLE, ("longmem.stores.handle", "rewind", 1, False)),
    "rollback: rows changed": (TO_MIDDLE, ("longmem.stores.handle", "rewind", 1, True)),
    "rollback: committed": (TO_MIDDLE, ("longmem.stores.opened", "trim_if_possible", 1, False)),
    "rollback: trimmed": (TO_MIDDLE, ("longmem.stores.opened", "trim_if_possible", 1, True)),
    "rollback: unlinked": (TO_MIDDLE, ("longmem.stores.folder", "Folder.unlink", 1, True)),
    "trim: half written": (TO_MIDDLE, ("longmem.stores.turn_file", "serialize_file", 1, True)),
    "trim: before rename": (TO_MIDDLE, ("os", "rename", 1, False)),
    "trim: renamed": (TO_MIDDLE, ("os", "rename", 1, True)),
    "trim: rows changed": (TO_MIDDLE, ("longmem.stores.trimming", "_replace", 1, True)),
    "trim of a deletion": (
        ["delete", "alice"],
        ("longmem.stores.trimming", "write_beginning", 1, True),
    ),
    "deletion: rows changed": (
        ["delete", "alice"],
        ("longmem.stores.opened", "remove_session", 1, True),
    ),
    "fork: rows copied": (
        ["fork", "alice", "carol", 5],
        ("longmem.stores.sqlite", "share_commits", 1, True),
    ),
    "fork: made": (
        ["fork", "alice", "carol", 5],
        ("longmem.stores.opened", "SQLiteHandle", 2, False),
    ),
    "rebuild: staged": (
        ["rebuild", "alice", 4, 3],
        ("longmem.stores.sqlite", "SQLiteStore.stage", 1, True),
    ),
    "rebuild: rows changed": (
        ["rebuild", "alice", 4, 3],
        ("longmem.stores.sqlite", "move_records", 1, True),
    ),
    "rebuild: published": (
        ["rebuild", "alice", 4, 3],
        ("longmem.stores.sqlite", "SQLiteStore._swap", 1, False),
    ),
    "erase: deleted": (["erase", "alice"], ("longmem.stores.scrubbing", "clean_index", 1, False)),
    "erase: index cleaned": (
        ["erase", "alice"],
        ("longmem.stores.database", "Database.vacuum", 1, False),
    ),
}


@pytest.fixture(scope="module")
def performer() -> Iterator[Performer]:
    performer = Performer()
    yield performer
    assert performer.process.stdin is not None
    performer.process.stdin.close()
    performer.process.wait()


def sound_sessions(path: Path, before: Sessions, maybe: Sessions) -> Sessions:
    """What the store holds: one or the other; and nothing is left of what was under way."""
    with SQLiteStore(path, merge_bytes=MERGE_BYTES) as store:
        assert store.verify() == []
        found = {info.id for info in store.sessions()}
        held = {}
        for name in found:
            handle = store.open(name)
            head = handle.info.head
            choices = [each[name] for each in (before, maybe) if name in each]
            (held[name], *_) = [
                made for made in choices if len(made) == head and holds(handle, made)
            ]
            handle.close()
        assert set(held) in (set(before), set(maybe))
        with store._database.transaction() as rows:
            for table in ("unlink_queue", "trim_queue"):
                assert rows.execute(f"SELECT * FROM {table}").fetchall() == []
            named = {row["name"] for row in rows.execute("SELECT name FROM files")}
            assert rows.execute("SELECT 1 FROM meta WHERE name = 'scrub'").fetchone() is None
        assert {entry.name for entry in (path / "files").iterdir()} == named
        assert list((path / "tmp").iterdir()) == []
    return held


def holds(handle, made) -> bool:
    if not made:
        return handle.snapshot() is None
    try:
        assert_holds(handle, made)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_leaves_what_was_or_what_was_to_be(
    performer: Performer, step: str, tmp_path: Path
) -> None:
    operation, place = STEPS[step]
    before: Sessions = {}
    for each in FILLED:
        before = after(before, each)
    performer.start(tmp_path / "store", [*FILLED, operation], list(place))
    assert performer.finish() == (len(FILLED), -signal.SIGKILL)
    sound_sessions(tmp_path / "store", before, after(before, operation))


@pytest.mark.timeout(1200)
def test_kills_at_random_moments_lose_and_mix_nothing(performer: Performer, tmp_path: Path) -> None:
    """LONGMEM_KILLS sets how many processes are killed."""
    random, path, held = Random(0), tmp_path / "store", Sessions()
    killed = 0
    for _ in range(KILLS):
        todo = list(operations(held, random, 400))
        pid = performer.start(path, todo)
        performer.wait_for_begin()
        time.sleep(random.uniform(0.0, 0.6))
        with suppress(ProcessLookupError):  # it is through with everything
            os.kill(pid, signal.SIGKILL)
        ended, code = performer.finish()
        killed += code == -signal.SIGKILL
        for operation in todo[:ended]:
            held = after(held, operation)
        maybe = after(held, todo[ended]) if ended < len(todo) else held
        held = sound_sessions(path, held, maybe)
    assert killed > KILLS // 2
