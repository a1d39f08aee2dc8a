"""Stored responses: records of the commits that made them, so that they come and go with those.

A response is found by its id, among those of its session, and by the request that made it. Keys begin
with the owner, whose name holds no slash: nobody reads another's.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from longmem.adapters.server.items import Item
from longmem.store import Record

if TYPE_CHECKING:
    from longmem.adapters.server.responses_body import ResponseBody
    from longmem.store import Records

_RESPONSES = "longmem.responses"
_OF_SESSION = "longmem.responses.sessions"
_BY_REQUEST = "longmem.responses.requests"


@dataclass(frozen=True)
class StoredResponse:
    """One response, and where its reply stands.

    Args:
        object: the response as it was answered.
        input: the items it was asked with.
        session: public id of its session.
        turn: index of its reply's turn when it was made; forgetting earlier turns moves it.
        message_id: id of the reply's message, which stays.
        request: `request_key` of the request that made it.
        said: `body_digest` of that request.
    """

    object: dict[str, Any]
    input: Sequence[Item]
    session: str
    turn: int
    message_id: str
    request: str
    said: str
    made_at: float = field(default_factory=time.time)

    @property
    def id(self) -> str:
        """Of the response."""
        return str(self.object["id"])


def request_key(body: ResponseBody, key: str | None) -> str:
    """Where to look for the response to a request that this one may repeat.

    Args:
        body: see `body_digest`.
        key: of the header Idempotency-Key, which stands for the body if it is there.
    """
    return _digest(["key", key] if key is not None else ["body", body_digest(body)])


def body_digest(body: ResponseBody) -> str:
    """The same for two requests that ask for the same: at the same place, with the same items, under
    the same instructions, tools and limits. Whether as a stream does not count, nor how a
    conversation or a plain text is written."""
    said = body.model_dump(exclude={"stream", "conversation", "input"})
    items = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    return _digest([said, body.conversation_id, items])


def _digest(said: list[Any]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:48]


class StoredResponses:
    """The responses of one owner.

    Args:
        records: the store's.
        owner: whose responses these are.
    """

    def __init__(self, records: Records, owner: str | None) -> None:
        self._records, self._owner = records, owner or ""

    def get(self, id: str) -> StoredResponse | None:
        """The response of that id, or None."""
        found = self._records.get(_RESPONSES, self._key(id))
        return None if found is None else StoredResponse(**found)

    def repeated(self, request: str) -> StoredResponse | None:
        """The newest response to an equal request, or None; see `request_key`."""
        found = self._records.list(_BY_REQUEST, self._key(request, ""))
        return self.get(found[-1][1]) if found else None

    def of_session(self, session: str) -> list[str]:
        """Ids of the responses in a session."""
        return [id for _, id in self._records.list(_OF_SESSION, self._key(session, ""))]

    def new(self, stored: StoredResponse) -> list[Record]:
        """What has to be committed with the exchange."""
        when = f"{int(stored.made_at * 1e6):020d}"
        return [
            Record(_RESPONSES, self._key(stored.id), asdict(stored)),
            Record(_OF_SESSION, self._key(stored.session, stored.id), stored.id),
            Record(_BY_REQUEST, self._key(stored.request, when, stored.id), stored.id),
        ]

    def delete(self, stored: StoredResponse) -> None:
        """Forget a response; its turns stay."""
        puts = self.new(stored)
        self._records.apply([], [(put.namespace, put.key) for put in puts])

    def _key(self, *parts: str) -> str:
        return "/".join([self._owner, *parts])
