"""Where a response begins: behind an earlier response, at the end of a conversation, or anew."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from longmem.adapters.server.conversations_pending import Pending
from longmem.adapters.server.conversations_state import Conversation, behind_instructions
from longmem.adapters.server.errors import ApiError
from longmem.adapters.server.responses_body import ResponseBody
from longmem.adapters.server.responses_store import StoredResponse, StoredResponses
from longmem.dialogue import Dialogue, Message, turn_message
from longmem.errors import SessionNotFoundError

if TYPE_CHECKING:
    from longmem.types import Turn


@dataclass(frozen=True)
class Head:
    """What a new response continues.

    Args:
        session: public id of the session; None: a new one.
        at: index of the turn it follows; None: the last one.
        aside: whether it leaves the session as it is: that of a conversation, which grows by responses
            that name it alone.
        begun: whether the session has turns already.
        pinned: its system turn, if it has one.
        instructions: what of the pinned system prompt came as instructions.
        pending: items of a conversation that were not read yet.
        upto: number of the last of them.
    """

    session: str | None = None
    at: int | None = None
    aside: bool = False
    begun: bool = False
    pinned: Turn | None = None
    instructions: str | None = None
    pending: tuple[Message, ...] = ()
    upto: int = -1

    def keeps(self, instructions: str | None) -> bool:
        """Whether the pinned system prompt goes with these instructions; those left out do."""
        if instructions is None or not self.begun:
            return True
        text = self.pinned.text if self.pinned else ""
        return text == instructions or text.startswith(f"{instructions}\n\n")

    def effective(self, instructions: str | None) -> str | None:
        """The instructions that hold: the new ones, or those of the response before."""
        return self.instructions if instructions is None else instructions


def find_head(dialogue: Dialogue, owner: str | None, body: ResponseBody) -> Head:
    """What the request continues.

    Raises:
        ApiError: 404, there is no such response or conversation.
    """
    if body.previous_response_id is not None:
        return _behind(dialogue, owner, body.previous_response_id)
    if body.conversation_id is not None:
        return _conversation(Conversation(dialogue, owner, body.conversation_id))
    return Head()


def response_not_found(id: str, param: str | None = None) -> ApiError:
    """No such response, or it is another owner's."""
    code = "previous_response_not_found" if param else "response_not_found"
    return ApiError(404, code, f"there is no response {id!r}; it may have been deleted", param)


def find_turn(dialogue: Dialogue, owner: str | None, stored: StoredResponse) -> int | None:
    """Index of the turn of a stored response; None if it was forgotten."""
    try:
        for turn in dialogue.turns(owner, stored.session, stored.turn, stored.turn + 1):
            if turn.extra.get("id") == stored.message_id:
                return turn.index
        for turn in reversed(dialogue.turns(owner, stored.session, 0, stored.turn)):
            if turn.extra.get("id") == stored.message_id:
                return turn.index
    except SessionNotFoundError:
        pass
    return None


def reread(dialogue: Dialogue, owner: str | None, head: Head, body: ResponseBody) -> list[Message]:
    """The history before `head` as messages, under the request's own instructions.

    What was pinned stays in front of the history, but for the earlier instructions.
    """
    turns = dialogue.turns(owner, head.session or "", 0, None if head.at is None else head.at + 1)
    history = [turn_message(turn) for turn in turns]
    instructions = head.effective(body.instructions)
    begin = [Message("system", instructions)] if instructions else []
    if history and history[0].role == "system":
        first = history.pop(0)
        rest = behind_instructions(first.text, head.instructions)
        begin += [replace(first, text=rest)] if rest else []
    return begin + history


def pinned_tools(head: Head) -> list[Any]:
    """Definitions of the tools pinned in the session."""
    return list(head.pinned.extra.get("tools", ())) if head.pinned else []


def _behind(dialogue: Dialogue, owner: str | None, id: str) -> Head:
    stored = StoredResponses(dialogue.pool.store.records, owner).get(id)
    at = None if stored is None else find_turn(dialogue, owner, stored)
    if stored is None or at is None:
        raise response_not_found(id, "previous_response_id")
    pinned = _pinned(dialogue, owner, stored.session)
    instructions = stored.object["instructions"]
    aside = stored.object["conversation"] is not None
    return Head(stored.session, at, aside, True, pinned, instructions)


def _conversation(talk: Conversation) -> Head:
    waiting = Pending(talk.dialogue, talk.owner, talk.id).all()
    session = talk.session
    pinned = _pinned(talk.dialogue, talk.owner, session)
    return Head(
        session,
        begun=talk.dialogue.info(talk.owner, session).n_turns > 0,
        pinned=pinned,
        instructions=talk.instructions if pinned else None,
        pending=tuple(each.message for each in waiting),
        upto=waiting[-1].number if waiting else -1,
    )


def _pinned(dialogue: Dialogue, owner: str | None, session: str) -> Turn | None:
    first = dialogue.turns(owner, session, 0, 1)
    return first[0] if first and first[0].role == "system" else None
