"""An exchange as callers see it: a block, its events, its outcome."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from longmem.dialogue.events import Event, Outcome
from longmem.dialogue.talk import Talk
from longmem.errors import SessionError

if TYPE_CHECKING:
    from longmem.dialogue.dialogue import Dialogue
    from longmem.dialogue.request import Request


class ExchangeFacts:
    """What is known of an exchange as soon as its block is entered, and when it is through."""

    def __init__(self, dialogue: Dialogue, request: Request) -> None:
        self._talk = Talk(dialogue, request)

    @property
    def session(self) -> str | None:
        """Public id of the session that will hold the exchange; None: nothing is stored."""
        return self._talk.id

    @property
    def forked_from(self) -> str | None:
        """Public id of the session the messages diverged from; None if they did not."""
        return self._talk.forked_from

    @property
    def message_id(self) -> str:
        """Id of the reply's message."""
        stored = self._talk.outcome
        return (stored.message.id if stored else None) or self._talk.message_id

    @property
    def repeated(self) -> bool:
        """Whether the reply is that of an earlier, equal request."""
        return self._talk.stream is None

    @property
    def outcome(self) -> Outcome:
        """What the exchange came to.

        Raises:
            SessionError: it is not through, or was dropped.
        """
        if self._talk.outcome is None:
            raise SessionError(
                "this exchange has no outcome: it is not through, or it was dropped; take its events "
                "to the end, or stop it"
            )
        return self._talk.outcome


class Exchange(ExchangeFacts):
    """``with dialogue.stream(request) as exchange: for event in exchange: ...``

    Entering the block opens the session and compares the messages with what it holds; nothing is
    read before the first event is asked for. The exchange is committed when the events end by
    themselves or by `stop`; leaving the block before drops it, with the fork that was made for it.
    """

    def __enter__(self) -> Self:
        self._talk.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._talk.close()

    def __iter__(self) -> Iterator[Event]:
        talk = self._talk
        if talk.stream is not None:
            while (piece := talk.stream.next_piece()) is not None:
                yield from talk.push(piece)
            talk.end(talk.stream.reply)
        yield from talk.closing()

    def stop(self) -> Outcome:
        """End the reply here and commit what was said."""
        stream = self._talk.stream
        return self.outcome if stream is None else self._talk.end(stream.stop())

    def finish(self) -> Outcome:
        """Decode to the end; as iterating, but nobody waits for pieces."""
        stream = self._talk.stream
        return self.outcome if stream is None else self._talk.end(stream.finish())

    def cancel(self) -> None:
        """Drop the exchange; from any thread. Without effect once it is through."""
        if self._talk.stream is not None:
            self._talk.stream.cancel()
