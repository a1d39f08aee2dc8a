"""An exchange as an asyncio program sees it: it runs in worker threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

from longmem.async_reply import AsyncReplyStream, Underway
from longmem.dialogue.events import Event, Outcome
from longmem.dialogue.exchange import ExchangeFacts

if TYPE_CHECKING:
    from longmem.dialogue.dialogue import Dialogue
    from longmem.dialogue.request import Request
    from longmem.types import Reply


class AsyncExchange(ExchangeFacts):
    """`Exchange` for asyncio: ``async with dialogue.astream(request) as exchange: async for ...``.

    Cancelling the task drops the exchange; what it held is given back before the block is left.
    """

    def __init__(self, dialogue: Dialogue, request: Request) -> None:
        super().__init__(dialogue, request)
        self._workers = dialogue.engine.workers
        self._stream: AsyncReplyStream | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._workers.run(self._talk.open)
        except BaseException:
            await self._leave()
            raise
        if self._talk.stream is not None:
            self._stream = AsyncReplyStream(self._talk.stream, Underway())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._leave()

    async def __aiter__(self) -> AsyncIterator[Event]:
        talk = self._talk
        if self._stream is not None:
            while (piece := await self._stream.next_piece()) is not None:
                for event in talk.push(piece):
                    yield event
            await self._end(self._stream.reply)
        for event in talk.closing():
            yield event

    async def stop(self) -> Outcome:
        """As `Exchange.stop`."""
        if self._stream is None:
            return self.outcome
        return await self._end(await self._stream.stop())

    async def finish(self) -> Outcome:
        """As `Exchange.finish`."""
        if self._stream is None:
            return self.outcome
        return await self._end(await self._stream.finish())

    async def cancel(self) -> None:
        """As `Exchange.cancel`."""
        if self._stream is not None:
            await self._stream.cancel()

    async def _end(self, reply: Reply) -> Outcome:
        """The outcome; a reply that takes the place of others is published in a thread."""
        return await self._workers.run(partial(self._talk.end, reply))

    async def _leave(self) -> None:
        """Give everything back, in a thread that goes on if the task is cancelled meanwhile."""
        if self._talk.stream is not None:
            self._talk.stream.give_up()
        await asyncio.shield(self._workers.run(self._talk.close))
