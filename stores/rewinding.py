"""The transaction that takes a session back to an earlier head."""

from __future__ import annotations

import sqlite3
import time

from longmem.stores.claim import Claim, check_lease
from longmem.stores.forking import BYTES, point_of
from longmem.stores.removal import drop_commits
from longmem.stores.search_index import unindex_turns


def rewind(rows: sqlite3.Connection, claim: Claim, head: int) -> None:
    """Drop the commits behind `head`, their turns, and the records tied to them.

    Raises:
        StaleWriterError: head or lease epoch is no longer the claim's.
    """
    check_lease(rows, claim)
    point = point_of(rows, claim.key, head)
    drop_commits(rows, claim.key, head)
    unindex_turns(rows, claim.key, point.n_turns)
    rows.execute("DELETE FROM turns WHERE session = ? AND idx >= ?", (claim.key, point.n_turns))
    rows.execute(
        """DELETE FROM records WHERE session = ? AND head > ? AND EXISTS (
             SELECT 1 FROM sessions WHERE key = ? AND staged_for IS NULL)""",
        (claim.info.id, head, claim.key),
    )
    rows.execute(
        f"""UPDATE sessions SET head = ?, n_turns = ?, n_tokens = ?, bytes = {BYTES},
            rollbacks = rollbacks + 1, updated_at = ? WHERE key = ?""",
        (head, point.n_turns, point.n_tokens, time.time(), claim.key),
    )
