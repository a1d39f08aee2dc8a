"""What is known of a conversation besides its turns: metadata, instructions, and where its turns are.

The turns are those of the session of the same id, until the instructions or tools change. Those are
pinned at the start of a session, so that the history is read again under the new ones, in a new session
that the conversation moves to. The earlier one stays: its responses can still be continued.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from longmem.adapters.server.errors import ApiError
from longmem.errors import SessionNotFoundError
from longmem.store import Record

if TYPE_CHECKING:
    from longmem.dialogue import Dialogue
    from longmem.store import Records, SessionInfo
    from longmem.types import Turn

_METADATA = "longmem.conversations.metadata"
_INSTRUCTIONS = "longmem.conversations.instructions"
_MOVES = "longmem.conversations.moves"


def conversation_not_found(id: str, param: str | None = None) -> ApiError:
    """No such conversation, or it is another owner's."""
    message = f"there is no conversation {id!r}; it may have been deleted"
    return ApiError(404, "conversation_not_found", message, param)


@dataclass(frozen=True)
class Conversation:
    """One conversation.

    Args:
        dialogue: holds the store.
        owner: whose it is.
        id: of the conversation, and of the session it begins in.
    """

    dialogue: Dialogue
    owner: str | None
    id: str

    @cached_property
    def info(self) -> SessionInfo:
        """The session it began in.

        Raises:
            ApiError: 404.
        """
        try:
            return self.dialogue.info(self.owner, self.id)
        except SessionNotFoundError:
            raise conversation_not_found(self.id) from None

    def check(self) -> None:
        """Whether it is there.

        Raises:
            ApiError: 404.
        """
        assert self.info is not None

    @property
    def sessions(self) -> list[str]:
        """Public ids of the sessions it was in, the present one last."""
        return [self.info.id, *self._moved]

    @property
    def session(self) -> str:
        """Public id of the session that holds its turns."""
        return self.sessions[-1]

    @property
    def metadata(self) -> dict[str, str]:
        """What the client keeps with it."""
        kept = self._records.get(_METADATA, self._key)
        given = self.info.metadata if kept is None else kept
        return {name: value for name, value in given.items() if isinstance(value, str)}

    def set_metadata(self, metadata: Mapping[str, str]) -> None:
        """Replace it."""
        stored_id = self._stored(self.info.id)
        self._records.put(_METADATA, self._key, dict(metadata), session=stored_id)

    def delete(self) -> None:
        """Delete it, with every session it was in.

        Raises:
            SessionInUseError: one of them is being written.
        """
        for session in reversed(self.sessions):
            self.dialogue.delete(self.owner, session)

    @property
    def traces(self) -> list[str]:
        """Public ids of the sessions that go with the session of its id, the oldest last: those it
        moved to are there still when the one it began in is gone. At least its own id."""
        return [*reversed(self._moved), self.id]

    @property
    def instructions(self) -> str | None:
        """What of the pinned system prompt is no item but instructions."""
        kept = self._records.get(_INSTRUCTIONS, f"{self.owner or ''}/{self.session}")
        return None if kept is None else str(kept)

    def item_text(self, pinned: Turn) -> str:
        """What of the pinned system turn came as items."""
        return behind_instructions(pinned.text, self.instructions)

    def begun(self, session: str, instructions: str | None) -> list[Record]:
        """What is committed with the first exchange in a session of this conversation."""
        made = []
        if session != self.id:
            number = max((number for number, _ in self._moves), default=-1) + 1
            made.append(Record(_MOVES, f"{self._key}/{number:06d}", session))
        if instructions is not None:
            made.append(Record(_INSTRUCTIONS, f"{self.owner or ''}/{session}", instructions))
        return made

    def object(self) -> dict[str, Any]:
        """The object of the dialect."""
        return {
            "id": self.id,
            "object": "conversation",
            "created_at": int(self.info.created_at),
            "metadata": self.metadata,
        }

    @property
    def _moves(self) -> list[tuple[int, str]]:
        """(number, session) of each move whose session was not deleted."""
        found = self._records.list(_MOVES, f"{self._key}/")
        return [(int(key.rpartition("/")[2]), to) for key, to in found]

    @property
    def _moved(self) -> list[str]:
        """Public ids of the sessions it moved to, the present one last."""
        found = (to for _, to in self._moves)
        return [to for to in found if self.dialogue.find(self.owner, self._stored(to))]

    @property
    def _records(self) -> Records:
        return self.dialogue.pool.store.records

    @property
    def _key(self) -> str:
        return f"{self.owner or ''}/{self.id}"

    def _stored(self, session: str) -> str:
        return self.dialogue.resolve(self.owner, session)


def behind_instructions(text: str, instructions: str | None) -> str:
    """A system prompt without the instructions it begins with."""
    return text.removeprefix(instructions).removeprefix("\n\n") if instructions else text
