"""Items that were added to a conversation and wait to be read with its next response.

They are records of the session. The exchange that reads them commits a mark with the number of the last
one, so that each is read once whatever happens; what lies below the mark is removed later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from longmem.adapters.server.items import Item, message_items, without
from longmem.dialogue import Message
from longmem.store import Record
from longmem.tools import ToolCall

if TYPE_CHECKING:
    from longmem.dialogue import Dialogue

_PENDING = "longmem.conversations.pending"
_READ = "longmem.conversations.read"


@dataclass(frozen=True)
class Waiting:
    """A message that was not read yet.

    Args:
        number: its place among all that were ever added to the conversation.
        message: what was said.
        batch: of the request that added it.
    """

    number: int
    message: Message
    batch: str

    @property
    def items(self) -> list[Item]:
        """What the message is made of."""
        return message_items(self.message)


class Pending:
    """What waits in one conversation. Only one thread at a time may change it.

    Args:
        dialogue: holds the store.
        owner: whose conversation it is.
        conversation: its id, which is that of its session.
    """

    def __init__(self, dialogue: Dialogue, owner: str | None, conversation: str) -> None:
        self._records = dialogue.pool.store.records
        self._session = dialogue.resolve(owner, conversation)
        self._prefix = f"{owner or ''}/{conversation}/"

    def all(self) -> list[Waiting]:
        """What waits, in order."""
        mark = self._mark()
        found = self._records.list(_PENDING, self._prefix)
        waiting = [_waiting(key, value) for key, value in found]
        return [each for each in waiting if each.number > mark]

    def add(self, messages: Sequence[Message], batch: str) -> list[Waiting]:
        """Let messages wait behind the others.

        Raises:
            SessionNotFoundError: the conversation was deleted.
        """
        there = self._records.list(_PENDING, self._prefix)
        last = max([self._mark(), *(_number(key) for key, _ in there)])
        added = [Waiting(last + 1 + i, each, batch) for i, each in enumerate(messages)]
        self._records.apply([self._record(each) for each in added], session=self._session)
        return added

    def remove(self, waiting: Waiting, item_id: str) -> None:
        """Take one item of a waiting message away."""
        left = without(waiting.message, item_id)
        if left is None:
            self._records.apply([], [(_PENDING, self._key(waiting.number))])
        else:
            kept = self._record(Waiting(waiting.number, left, waiting.batch))
            self._records.apply([kept], session=self._session)

    def read(self, upto: int) -> list[Record]:
        """What the exchange commits that reads everything up to number `upto`."""
        return [Record(_READ, self._key(upto), upto)] if upto >= 0 else []

    def sweep(self) -> None:
        """Remove what was read."""
        mark, found = self._mark(), self._records.list(_PENDING, self._prefix)
        gone = [(_PENDING, key) for key, _ in found if _number(key) <= mark]
        if gone:
            self._records.apply([], gone)

    def _mark(self) -> int:
        """Number of the last message that was read; -1: none was."""
        found = self._records.list(_READ, self._prefix, limit=1, newest_first=True)
        return int(found[0][1]) if found else -1

    def _record(self, waiting: Waiting) -> Record:
        value = {"message": asdict(waiting.message), "batch": waiting.batch}
        return Record(_PENDING, self._key(waiting.number), value)

    def _key(self, number: int) -> str:
        return f"{self._prefix}{number:012d}"


def _number(key: str) -> int:
    return int(key.rpartition("/")[2])


def _waiting(key: str, value: dict[str, Any]) -> Waiting:
    fields = dict(value["message"])
    fields["tool_calls"] = tuple(ToolCall(**call) for call in fields["tool_calls"])
    return Waiting(_number(key), Message(**fields), value["batch"])
