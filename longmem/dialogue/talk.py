"""One exchange, apart from how its pieces are waited for."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from transformers import LogitsProcessorList

from longmem.dialogue import stored_replies
from longmem.dialogue.chain import KEY, chained, link
from longmem.dialogue.events import Event, Outcome, TextDelta, ToolCallsReady
from longmem.dialogue.ids import public_id
from longmem.dialogue.message import Message, call_details
from longmem.dialogue.opening import Opened, Opening
from longmem.dialogue.reply_text import ReplyText
from longmem.errors import SessionError
from longmem.store import Record
from longmem.tools import reply_constraint

if TYPE_CHECKING:
    from longmem.dialogue.dialogue import Dialogue
    from longmem.dialogue.request import Request
    from longmem.reply_stream import ReplyStream
    from longmem.types import Reply, Usage


class Talk:
    """Opens the exchange, turns pieces into events and replies into outcomes.

    Args:
        dialogue: where it happens.
        request: what is asked.

    Attributes:
        stream: the reply, once opened; None for a repeat.
        outcome: what it came to, once it is through.
        message_id: id of the reply's message.
    """

    def __init__(self, dialogue: Dialogue, request: Request) -> None:
        self._dialogue, self._request = dialogue, request
        self._opening = Opening(dialogue, request)
        self._lock = threading.Lock()
        """Held while it is opened, ended, closed: who leaves waits for a thread that does one of them."""
        self._left = False
        self._opened: Opened | None = None
        self.stream: ReplyStream | None = None
        self.outcome: Outcome | None = None
        self.message_id = request.message_id or f"msg_{secrets.token_hex(12)}"

    def open(self) -> None:
        """Claim, lease, reconcile, and be ready to read; see `Opening.open`.

        Raises:
            InputError: a message is refused; nothing is left of the attempt.
        """
        with self._lock:
            if self._left:  # nobody waits for it any more
                return
            opened = self._opening.open()
            try:
                self.stream = self._new_stream(opened)
            except BaseException:
                self._opening.close(done=False)
                raise
            self._opened, self.outcome = opened, opened.stored

    def close(self) -> None:
        """Drop the exchange if it is not through, and give back what `open` took; waits for a thread
        that is in the middle of it. Without an outcome nothing stays of the exchange."""
        if self.stream is not None:
            self.stream.give_up()
        with self._lock:
            first, self._left = not self._left, True
            if self._opened is None or not first:
                return
            try:
                if self.stream is not None:
                    self.stream.cancel()
            finally:
                self._opening.close(done=self._through())

    @property
    def id(self) -> str | None:
        """Public id of the session that keeps the exchange."""
        opened = self._there
        if opened.stored is not None:
            return opened.stored.session
        stored_id = opened.stored_id
        return None if stored_id is None else public_id(self._request.owner, stored_id)

    @property
    def forked_from(self) -> str | None:
        """Public id of the session it diverged from."""
        return self._there.forked_from

    def push(self, piece: str) -> list[Event]:
        """The next characters of the reply."""
        text = self._text.push(piece)
        return [TextDelta(text)] if text else []

    def end(self, reply: Reply) -> Outcome:
        """The reply is whole, and committed."""
        with self._lock:
            if self.outcome is None:
                outcome = self._outcome(reply)
                if self._there.redo is not None and self._there.stored_id is not None:
                    self._there.redo.publish(self._records(reply))
                self.outcome = outcome
        return self.outcome

    def closing(self) -> list[Event]:
        """The events that are left when the outcome is there; once."""
        assert self.outcome is not None
        message = self.outcome.message
        if self.stream is None:
            text, calls = message.text, message.tool_calls
        else:
            text, calls = self._text.rest()
        events: list[Event] = [TextDelta(text)] if text else []
        return [*events, ToolCallsReady(calls)] if calls else events

    @property
    def _there(self) -> Opened:
        if self._opened is None:
            raise SessionError("this exchange is not under way; enter its block first")
        return self._opened

    def _through(self) -> bool:
        """Whether the exchange is durable, or a repeat; nobody may have been told of it yet."""
        if self.outcome is not None or self.stream is None or self._there.redo is not None:
            return self.outcome is not None
        try:
            return self.stream.reply is not None
        except SessionError:
            return False

    def _new_stream(self, opened: Opened) -> ReplyStream | None:
        if opened.session is None:
            return None
        engine, request = self._dialogue.engine, self._request
        self._text = ReplyText(engine.chat, opened.tools, request.tool_choice)
        commit = opened.stored_id is not None
        kept: dict[str, Any] = {"finish": self._details} if commit else {}
        if commit and opened.redo is None:
            kept["records"] = self._records
        constraint = reply_constraint(
            engine, schema=request.schema, tools=opened.tools, tool_choice=request.tool_choice
        )
        if constraint is not None:
            kept["logits_processor"] = LogitsProcessorList([constraint])
        return opened.session.stream(opened.turns, commit=commit, sampling=request.sampling, **kept)

    def _message(self, reply: Reply) -> Message:
        text, calls = self._text.parse(reply.text)
        return Message("assistant", text, self.message_id, calls, reasoning=reply.reasoning)

    def _usage(self, reply: Reply) -> Usage:
        """The reply's counts, with the system prompt among what was read if that was now."""
        usage, pinned = reply.usage, self._there.pinned
        return replace(usage, read=usage.read + pinned, from_memory=usage.from_memory - pinned)

    def _outcome(self, reply: Reply) -> Outcome:
        message, usage = self._message(reply), self._usage(reply)
        return Outcome(
            self.id,
            reply.turn,
            message,
            reply,
            stored_replies.finish_reason(reply, bool(message.tool_calls)),
            repeated=False,
            forked_from=self.forked_from,
            read=usage.read,
            from_memory=usage.from_memory,
        )

    def _details(self, reply: Reply) -> Mapping[str, Any]:
        """What is kept with the reply's turn."""
        message, opened = self._message(reply), self._there
        calls = call_details(message.text, message.tool_calls) if message.tool_calls else {}
        return {
            "id": self.message_id,
            KEY: link(opened.count + 1, chained(opened.value, message)),
            "usage": stored_replies.usage_details(self._usage(reply)),
            **calls,
        }

    def _records(self, reply: Reply) -> list[Record]:
        """What leads a repeat to the reply, and what the caller wants kept."""
        where = stored_replies.pointer(
            self._there.stored_id, reply.turn, self.message_id, self.forked_from
        )
        own = [
            Record(space, key, where | {"request": digest})
            for space, key, digest in self._there.pointers
        ]
        given = self._request.records
        return own if given is None else [*own, *given(self._outcome(reply))]
