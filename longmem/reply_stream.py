"""One exchange: a user's turn is read, a reply is decoded piece by piece, both are committed."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

from longmem.errors import SessionError
from longmem.recall import recalled
from longmem.strand import Strand, StrandCancelled
from longmem.types import Reply, Timings, Turn

if TYPE_CHECKING:
    from longmem.conversation import Conversation, Transaction
    from longmem.decoding import Extensions
    from longmem.keeping import Keeping
    from longmem.ledger import Draft
    from longmem.sampling import Sampling
    from longmem.workers import Workers


class ReplyStream:
    """Text pieces of a reply while it is decoded. Iterate once; also a context manager.

    The exchange is committed when the iteration ends by itself or by `stop`. `cancel`, an error,
    a broken iteration or leaving the ``with`` block early drop it: the session is as it was before.
    Safe to stop or cancel from another thread; both take effect between two tokens. While several
    sessions are active, decoding may be a few pieces ahead of what was read from here; a stream that
    is not read stands still, and disturbs nobody.
    """

    def __init__(
        self,
        conversation: Conversation,
        turns: Sequence[Turn],
        sampling: Sampling,
        extensions: Extensions,
        keeping: Keeping | None,
    ) -> None:
        """`keeping` is None where nothing is committed."""
        self._conversation = conversation
        self._turns = turns
        self._sampling, self._extensions = sampling, extensions
        self._keeping = keeping
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._cancelling = threading.Event()
        self._strand: Strand[str] | None = None
        self._whole = False
        self._reply: Reply | None = None
        self._done = False
        self._error: BaseException | None = None
        self._pieces = self._exchange()

    def __iter__(self) -> Iterator[str]:
        try:
            while (piece := self.next_piece()) is not None:
                yield piece
        finally:
            self.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()

    @property
    def reply(self) -> Reply:
        """The whole reply.

        Raises:
            SessionError: the stream is not through, or was cancelled.
        """
        if self._reply is None:
            state = "is not through; iterate it to its end"
            if self._done:
                state = f"failed: {self._error}" if self._error else "was cancelled"
            raise SessionError(f"session {self._conversation.id!r}: this reply {state}")
        return self._reply

    def stop(self) -> Reply:
        """End the reply here and commit what was said."""
        self._stopping.set()
        if self._strand is not None:
            self._conversation.engine.scheduler.nudge(self._strand)
        while self.next_piece() is not None:
            pass
        return self.reply

    def finish(self) -> Reply:
        """Decode to the end and give the whole reply: as iterating, but nobody waits for pieces."""
        try:
            self._whole = True
            while self.next_piece() is not None:
                pass
        finally:
            self.cancel()
        return self.reply

    def cancel(self) -> None:
        """Drop the exchange: neither the user's turn nor the reply leave a trace. Without effect
        once the reply is through."""
        self.give_up()
        with self._lock:
            if not self._done:
                self._done = True
                self._pieces.close()

    def give_up(self) -> None:
        """The first half of `cancel`, which never waits: the exchange is in no further pass."""
        self._cancelling.set()
        if self._strand is not None:
            self._conversation.engine.scheduler.cancel(self._strand)

    def poll(self) -> str | None:
        """The next piece, if it is there already; never waits for a pass."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            there = self._strand is not None and self._strand.brought
            return self.next_piece() if there and not self._cancelling.is_set() else None
        finally:
            self._lock.release()

    @property
    def workers(self) -> Workers:
        """The threads in which asyncio programs wait for pieces."""
        return self._conversation.engine.workers

    def next_piece(self) -> str | None:
        """The next piece of text; None at the end."""
        with self._lock:
            if self._done:
                return None
            try:
                return next(self._pieces)
            except (StopIteration, StrandCancelled):
                self._done = True
                return None
            except BaseException as error:
                self._done, self._error = True, error
                raise

    def _exchange(self) -> Generator[str, None, None]:
        """Run the exchange inside the session's transaction."""
        with self._conversation.transaction(self) as transaction:
            started = time.perf_counter()
            decoding = transaction.decoding(
                self._turns, self._sampling, self._extensions, self._stopping.is_set
            )
            self._strand = Strand(decoding.steps, self._whole)
            if self._cancelling.is_set():
                self._strand.cancelled = True
            yield from self._conversation.engine.scheduler.run(self._strand)
            decoded = time.perf_counter()
            ledger = self._conversation.ledger
            looked_up = recalled(
                decoding.choices, transaction.memory, ledger.history, ledger.n_tokens
            )
            drafts = decoding.drafts()  # may rewind, and with it forget the blocks looked up
            first = decoding.first_token_at
            reply = Reply(
                text=decoding.text.text,
                reasoning=decoding.text.reasoning,
                finish_reason=decoding.finish,
                usage=decoding.usage(),
                recalled=looked_up,
                timings=Timings(first - started, decoded - first),
                turn=ledger.n_turns + len(drafts) - 1 if self._keeping else None,
            )
            if self._keeping is not None:
                _commit(transaction, drafts, reply, self._keeping)
            timings = replace(reply.timings, commit=time.perf_counter() - decoded)
            self._reply = replace(reply, timings=timings)


def _commit(
    transaction: Transaction, drafts: Sequence[Draft], reply: Reply, keeping: Keeping
) -> None:
    """Make the exchange durable with what the caller wants kept."""
    *read, last = drafts
    last = replace(last, extra={**last.extra, **keeping.details(reply)})
    transaction.commit([*read, last], keeping.made_records(reply))
