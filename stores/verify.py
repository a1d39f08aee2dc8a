"""Proves a store: every row against its neighbours, every file against its row, every byte."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from longmem.errors import CorruptDataError, StoreError
from longmem.store import Problem, SessionInfo
from longmem.stores import folder as folders
from longmem.stores.claim import check_belongs
from longmem.stores.database import Database
from longmem.stores.folder import Folder
from longmem.stores.record_rows import record_value
from longmem.stores.rows import file_of, layout_id, session_of, turn_of
from longmem.stores.search_index import check_index
from longmem.stores.turn_file import FileRow
from longmem.stores.usage import check_totals

_TOO_LONG = """
    SELECT f.name FROM files f WHERE f.commits > 1
      AND f.key NOT IN (SELECT file FROM trim_queue)
      AND f.commits > (SELECT max(n) FROM (SELECT count(*) AS n FROM commits c
                       WHERE c.file = f.key GROUP BY c.session))
"""
_UNTIED = """
    SELECT key, session FROM records WHERE session IS NOT NULL
      AND session NOT IN (SELECT id FROM sessions WHERE staged_for IS NULL)
"""


def verify(database: Database, folder: Folder, store: str, session_id: str | None) -> list[Problem]:
    """Everything that is wrong with one session, or with the whole store and its database."""
    problems: list[Problem] = []
    checked: set[str] = set()  # a file that several sessions share is read once
    try:
        for key in _keys(database, session_id):
            problems += _check_session(database, folder, store, key, checked)
        if session_id is None:
            problems += _check_database(database)
            problems += _check_adapters(database)
            problems += _orphans(database, folder)
            problems += _totals(database)
    except CorruptDataError as error:
        problems.append(Problem(session_id, database.path.name, str(error)))
    return problems


def _keys(database: Database, session_id: str | None) -> list[int]:
    with database.transaction() as rows:
        found = rows.execute(
            "SELECT key FROM sessions WHERE :id IS NULL OR id = :id", {"id": session_id}
        )
        return [row["key"] for row in found]


def _check_session(
    database: Database, folder: Folder, store: str, key: int, checked: set[str]
) -> Iterator[Problem]:
    with database.transaction() as rows:
        session = rows.execute("SELECT * FROM sessions WHERE key = ?", (key,)).fetchone()
        if session is None:
            return  # deleted since we listed it
        try:
            info = session_of(session)
        except CorruptDataError as error:
            yield Problem(session["id"], None, str(error))
            return
        problems = list(_check_records(rows, key, info))
        files = _files(rows, key, store)
    yield from problems
    for file in files:
        yield from _check_owner(info, file)
        if file.name not in checked:
            checked.add(file.name)
            yield from _check_file(database, folder, info.id, file)


def _check_records(rows: sqlite3.Connection, key: int, info: SessionInfo) -> Iterator[Problem]:
    """Commits and turns must be numbered and positioned without gaps up to the session's counts."""
    position = turns = head = 0
    for row in rows.execute("SELECT * FROM commits WHERE session = ? ORDER BY seq", (key,)):
        head += 1
        if (row["seq"], row["start"], row["first_turn"]) != (head, position, turns):
            yield Problem(info.id, None, f"commit {row['seq']} does not follow commit {head - 1}")
        position, turns = row["stop"], row["stop_turn"]
    if (head, position, turns) != (info.head, info.n_tokens, info.n_turns):
        yield Problem(info.id, None, "the session's counts are not those of its commits")
    yield from _check_extents(rows, key, info)
    yield from _check_turns(rows, key, info)


def _check_extents(rows: sqlite3.Connection, key: int, info: SessionInfo) -> Iterator[Problem]:
    """Each file must hold its commits from its first on; not all, if the session shares it."""
    for row in rows.execute(
        """SELECT f.*, count(*) AS held, max(c.seq) - min(c.seq) + 1 AS span, min(c.start) AS first,
             max(c.stop) AS last FROM commits c JOIN files f ON f.key = c.file
           WHERE c.session = ? GROUP BY f.key""",
        (key,),
    ):
        whole = row["held"] < row["commits"] or row["last"] == row["stop"]
        if not (whole and row["held"] == row["span"] <= row["commits"]) or (
            row["first"] != row["start"]
        ):
            yield Problem(info.id, row["name"], "the file does not hold the commits that name it")


def _check_turns(rows: sqlite3.Connection, key: int, info: SessionInfo) -> Iterator[Problem]:
    position = index = 0
    for row in rows.execute("SELECT * FROM turns WHERE session = ? ORDER BY idx", (key,)):
        try:
            turn = turn_of(row, info.id)
        except StoreError as error:
            yield Problem(info.id, None, str(error))
            return
        if (turn.index, turn.start) != (index, position):
            yield Problem(info.id, None, f"turn {turn.index} does not follow turn {index - 1}")
        position, index = turn.stop, turn.index + 1
    if (index, position) != (info.n_turns, info.n_tokens):
        yield Problem(info.id, None, "the session's counts are not those of its turns")


def _files(rows: sqlite3.Connection, key: int, store: str) -> list[FileRow]:
    found = rows.execute(
        """SELECT DISTINCT f.*, c.origin FROM commits c JOIN files f ON f.key = c.file
           WHERE c.session = ? ORDER BY f.start, f.key""",
        (key,),
    )
    return [file_of(row, store, row["origin"]) for row in found]


def _check_owner(info: SessionInfo, file: FileRow) -> Iterator[Problem]:
    try:
        check_belongs(file, info.id, layout_id(info))
    except CorruptDataError as error:
        yield Problem(info.id, file.name, str(error))


def _check_file(
    database: Database, folder: Folder, session: str, file: FileRow
) -> Iterator[Problem]:
    try:
        folder.open_fresh(file).check()
    except StoreError as error:
        with database.transaction() as rows:
            known = rows.execute("SELECT 1 FROM files WHERE name = ?", (file.name,)).fetchone()
        if known:  # otherwise its session was deleted while we read
            yield Problem(session, file.name, str(error))


def _check_database(database: Database) -> Iterator[Problem]:
    try:
        with database.transaction() as rows:
            for (message,) in rows.execute("PRAGMA integrity_check").fetchall():
                if message != "ok":
                    yield Problem(None, database.path.name, message)
            for table, *_ in rows.execute("PRAGMA foreign_key_check").fetchall():
                yield Problem(None, database.path.name, f"{table}: a row refers to nothing")
            for row in rows.execute(
                "SELECT name FROM files WHERE key NOT IN (SELECT file FROM commits)"
            ).fetchall():
                yield Problem(None, row["name"], "the file belongs to no commit")
            for row in rows.execute(_TOO_LONG).fetchall():
                yield Problem(
                    None, row["name"], "the file holds commits that no session refers to any more"
                )
            if not database.read_only:
                yield from _check_search(rows, database)
    except StoreError as error:
        yield Problem(None, database.path.name, str(error))


def _check_search(rows: sqlite3.Connection, database: Database) -> Iterator[Problem]:
    try:
        check_index(rows)
    except sqlite3.DatabaseError as error:
        yield Problem(
            None,
            database.path.name,
            f"the full-text index does not hold the words of the turns ({error}); restore a backup",
        )


def _check_adapters(database: Database) -> Iterator[Problem]:
    with database.transaction() as rows:
        for row in rows.execute("SELECT * FROM records ORDER BY namespace, key"):
            try:
                record_value(row)
            except CorruptDataError as error:
                yield Problem(row["session"], None, str(error))
        for row in rows.execute(_UNTIED).fetchall():
            yield Problem(
                row["session"], None, f"record {row['key']!r} is tied to a session that is gone"
            )


def _orphans(database: Database, folder: Folder) -> Iterator[Problem]:
    with database.transaction() as rows:
        known = {row["name"] for row in rows.execute("SELECT name FROM files")}
        known |= {row["name"] for row in rows.execute("SELECT name FROM unlink_queue")}
    for name in folder.orphans(known, age=folders.ORPHAN_AGE):
        yield Problem(
            None, name, "no commit names this file; the next writer to open the store removes it"
        )


def _totals(database: Database) -> Iterator[Problem]:
    with database.transaction() as rows:
        yield from check_totals(rows)
