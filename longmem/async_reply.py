"""A reply as an asyncio program sees it: the exchange runs in worker threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from longmem.reply_stream import ReplyStream
    from longmem.types import Reply

_T = TypeVar("_T")

_LOOP_TURNS = 3
"""What a task or an async generator that was dropped needs to notice: one turn to be scheduled, one
to be closed, one to spare."""


class Underway:
    """Which async exchange of a session is under way, or being dropped."""

    def __init__(self) -> None:
        self._stream: AsyncReplyStream | None = None

    async def settled(self) -> None:
        """Let a consumer that has left finish leaving. One that is still there is left alone: the
        session refuses the next exchange by itself."""
        for _ in range(_LOOP_TURNS):
            if self._stream is None or self._stream.leaving:
                break
            await asyncio.sleep(0)
        if self._stream is not None and self._stream.leaving:
            await self._stream.cancel()

    async def enter(self, stream: AsyncReplyStream) -> None:
        """`stream` begins."""
        await self.settled()
        if self._stream is None:
            self._stream = stream

    def leave(self, stream: AsyncReplyStream) -> None:
        """`stream` is through, or left no trace."""
        if self._stream is stream:
            self._stream = None


class AsyncReplyStream:
    """`ReplyStream` for asyncio: ``async for`` its pieces, once; also an async context manager.

    The exchange is committed when the iteration ends by itself or by `stop`. `cancel`, an error, a
    broken iteration, leaving the ``async with`` block early or cancelling the task drop it: the
    session is as it was before, and ready for the next exchange.

    Args:
        stream: the exchange.
        underway: the session's.
    """

    def __init__(self, stream: ReplyStream, underway: Underway) -> None:
        self._stream = stream
        self._underway = underway
        self._workers = stream.workers
        self._begun = self._ended = False
        self.leaving = False
        """Whether the exchange is being dropped."""

    def __aiter__(self) -> AsyncIterator[str]:
        return _Pieces(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.cancel()

    @property
    def reply(self) -> Reply:
        """The whole reply.

        Raises:
            SessionError: the stream is not through, or was cancelled.
        """
        return self._stream.reply

    async def stop(self) -> Reply:
        """End the reply here and commit what was said."""
        reply = await self._in_thread(self._stream.stop)
        self._end()
        return reply

    async def finish(self) -> Reply:
        """Decode to the end and give the whole reply."""
        reply = await self._in_thread(self._stream.finish)
        self._end()
        return reply

    async def cancel(self) -> None:
        """Drop the exchange: neither the user's turn nor the reply leave a trace. Without effect
        once the reply is through."""
        if self._ended:
            return
        self.leaving = True
        self._stream.give_up()
        await asyncio.shield(asyncio.to_thread(self._stream.cancel))
        self._end()

    async def next_piece(self) -> str | None:
        """The next piece of text; None at the end."""
        piece = self._stream.poll() or await self._in_thread(self._stream.next_piece)
        if piece is None:
            self._end()
        return piece

    def abandon(self) -> None:
        """`cancel` without waiting for a thread: nobody is left who takes a piece."""
        if self._begun and not (self._ended or self.leaving):
            self._stream.cancel()
            self._end()

    async def _in_thread(self, step: Callable[[], _T]) -> _T:
        """Run one step of the exchange."""
        try:
            if not self._begun:
                self._begun = True
                await self._underway.enter(self)
            return await self._workers.run(step)
        except asyncio.CancelledError:
            await self.cancel()
            raise
        except Exception:
            self._end()
            raise

    def _end(self) -> None:
        self._ended = True
        self._underway.leave(self)


class _Pieces:
    """One iteration. ``async for`` alone holds it, so that a ``break`` ends its life at once: an
    async generator would be closed only in a later turn of the loop."""

    def __init__(self, stream: AsyncReplyStream) -> None:
        self._stream = stream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        piece = await self._stream.next_piece()
        if piece is None:
            raise StopAsyncIteration
        return piece

    def __del__(self) -> None:
        self._stream.abandon()
