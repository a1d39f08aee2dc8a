"""Columns, table and triggers behind `longmem.stores.usage`; migration step 3 runs them once."""

from __future__ import annotations

ROW = 96  # longmem.stores.quota.ROW_BYTES; a released step may not follow a constant elsewhere


def _counted(row: str, *columns: str) -> str:
    """SQL for the bytes a row counts: its text and blobs, and what every row has beside them."""
    lengths = (f"ifnull(length(CAST({row}.{name} AS BLOB)), 0)" for name in columns)
    return f"({ROW} + {' + '.join(lengths)})"


def session_count(row: str) -> str:
    """SQL for what the row of a session counts."""
    return _counted(row, "id", "owner", "metadata", "fingerprint", "layout", "dtype")


def turn_count(row: str) -> str:
    """SQL for what the row of a turn counts."""
    return _counted(row, "role", "text", "ids", "spans", "extra")


def _add(session: str, amount: str) -> str:
    """SQL that adds to a session's rows; it finds none when the whole session is being deleted."""
    return f"UPDATE sessions SET row_bytes = row_bytes + {amount} WHERE key = {session};"


def _total(amount: str, owner: str) -> str:
    """SQL that adds to the totals of the store and of an owner."""
    return f"""UPDATE usage SET bytes = bytes + {amount}
               WHERE (scope = 'store' AND owner = '') OR (scope = 'owner' AND owner = {owner});"""


USAGE_SCHEMA = (
    "ALTER TABLE sessions ADD COLUMN max_bytes INTEGER",
    "ALTER TABLE sessions ADD COLUMN ttl REAL",
    "ALTER TABLE sessions ADD COLUMN row_bytes INTEGER NOT NULL DEFAULT 0",
    "CREATE INDEX sessions_expiring ON sessions(updated_at + ttl) WHERE ttl IS NOT NULL",
    f"""
    UPDATE sessions SET row_bytes = {session_count("sessions")}
        + (SELECT {ROW} * count(*) FROM commits c WHERE c.session = sessions.key)
        + (SELECT coalesce(sum({turn_count("t")}), 0) FROM turns t WHERE t.session = sessions.key)""",
    """
    CREATE TABLE usage (
        scope TEXT NOT NULL,
        owner TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        PRIMARY KEY (scope, owner)
    ) WITHOUT ROWID""",
    "INSERT INTO usage SELECT 'store', '', coalesce(sum(bytes + row_bytes), 0) FROM sessions",
    """INSERT INTO usage SELECT 'owner', owner, sum(bytes + row_bytes) FROM sessions
       WHERE owner IS NOT NULL GROUP BY owner""",
    f"""
    CREATE TRIGGER usage_session_added AFTER INSERT ON sessions BEGIN
        INSERT OR IGNORE INTO usage SELECT 'owner', NEW.owner, 0 WHERE NEW.owner IS NOT NULL;
        {_total("NEW.bytes + NEW.row_bytes", "NEW.owner")}
        {_add("NEW.key", session_count("NEW"))}
    END""",
    f"""
    CREATE TRIGGER usage_session_changed AFTER UPDATE OF bytes, row_bytes ON sessions BEGIN
        {_total("NEW.bytes + NEW.row_bytes - OLD.bytes - OLD.row_bytes", "NEW.owner")}
    END""",
    f"""
    CREATE TRIGGER usage_session_gone AFTER DELETE ON sessions BEGIN
        {_total("- OLD.bytes - OLD.row_bytes", "OLD.owner")}
        DELETE FROM usage WHERE scope = 'owner' AND owner = OLD.owner
            AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.owner = OLD.owner);
    END""",
    f"CREATE TRIGGER usage_commit_added AFTER INSERT ON commits BEGIN"
    f" {_add('NEW.session', str(ROW))} END",
    f"CREATE TRIGGER usage_commit_gone AFTER DELETE ON commits BEGIN"
    f" {_add('OLD.session', f'- {ROW}')} END",
    f"CREATE TRIGGER usage_turn_added AFTER INSERT ON turns BEGIN"
    f" {_add('NEW.session', turn_count('NEW'))} END",
    f"CREATE TRIGGER usage_turn_gone AFTER DELETE ON turns BEGIN"
    f" {_add('OLD.session', '- ' + turn_count('OLD'))} END",
)
