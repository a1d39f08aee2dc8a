"""An exchange behind an earlier turn of a session, in place of what the session went on with.

It happens in a hidden stand-in for the session, as of that turn. Published, the stand-in is the
session, in one transaction; dropped, the session is as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from longmem.errors import SessionInUseError
from longmem.opening import resume
from longmem.session import Session

if TYPE_CHECKING:
    from longmem.store import Record, SessionHandle


class Redo:
    """A session's past up to a turn, to go on from.

    Args:
        session: from the pool; others may read it meanwhile, and nobody writes it.
        at: index of the last turn that stays, which ends a commit; -1: none does.

    Attributes:
        session: the stand-in.

    Raises:
        StoreError: it could not be made; nothing was changed.
    """

    def __init__(self, session: Session, at: int) -> None:
        self._original = session
        self._store, self._handle = session._stored("cannot be rolled back")
        self._found = _place(self._handle)
        self._kept = self._handle.point(at + 1).head
        self._staged = self._store.stage(self._handle, self._handle.info, self._kept)
        try:
            opened = resume(session.engine, self._staged)
        except BaseException:
            self._staged.close()
            raise
        self.session = Session.__new__(Session)
        self.session._begin(session.engine, session.id, self._store, opened)

    def publish(self, records: Sequence[Record]) -> None:
        """Let the session hold what the stand-in does, with these records.

        Raises:
            SessionInUseError: another exchange is writing the session, or did so meanwhile: what it
                kept would be gone. Nothing was changed.
            StoreError: nothing was changed.
        """
        conversation, handle = self._original._conversation, self._handle
        with conversation.alone(), conversation.changing_past(handle):
            if _place(handle) != self._found:
                raise SessionInUseError(
                    f"session {self._original.id!r} went on otherwise while this exchange was under "
                    "way, which was to take the place of its end; nothing was changed, try again"
                )
            heads = {head: None for head in range(self._kept + 1, handle.info.head + 1)}
            self._store.publish(handle, self._staged, heads=heads, records=records)
            conversation.stand(resume(self._original.engine, handle))

    def close(self) -> None:
        """Drop the stand-in, unless it was published."""
        self.session.close()
        self._staged.close()


def _place(handle: SessionHandle) -> tuple[int, int, float]:
    """How far a session is, and since when."""
    return handle.info.head, handle.info.n_tokens, handle.info.updated_at
