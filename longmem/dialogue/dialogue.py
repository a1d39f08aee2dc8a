"""`Dialogue`: conversations of an engine and a store, for whoever sends messages."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from longmem.dialogue.async_exchange import AsyncExchange
from longmem.dialogue.exchange import Exchange
from longmem.dialogue.unfinished import sweep
from longmem.dialogue.verbs import Verbs
from longmem.session_pool import SessionPool

if TYPE_CHECKING:
    from longmem.dialogue.events import Outcome
    from longmem.dialogue.request import Request
    from longmem.engine import Engine
    from longmem.store import Store


class Dialogue(Verbs):
    """Answers requests in sessions, whichever way callers send their messages.

    A request brings the new messages, or the whole list once more. Compared with what its session
    holds, only what is new is read; a list that went another way is answered in a fork, or after a
    rollback. A request that is sent twice is answered once. What a crash left of sessions that were
    made for an exchange is removed when a dialogue is made.

    Args:
        engine: the model that reads and replies.
        store: where the sessions live. None: only requests without a session can be answered.
        pool: leases the sessions; default a new one, closed with the dialogue.
    """

    def __init__(
        self, engine: Engine, store: Store | None, *, pool: SessionPool | None = None
    ) -> None:
        self.engine, self.store = engine, store
        self._owns_pool = pool is None
        self._pool = SessionPool(engine, store) if pool is None and store is not None else pool
        if store is not None:
            sweep(store)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Park all sessions, unless the pool was given. Exchanges under way end by themselves."""
        if self._owns_pool and self._pool is not None:
            self._pool.close()

    def stream(self, request: Request) -> Exchange:
        """An exchange, event by event: ``with dialogue.stream(request) as exchange``."""
        return Exchange(self, request)

    def astream(self, request: Request) -> AsyncExchange:
        """`stream` for asyncio: ``async with dialogue.astream(request) as exchange``."""
        return AsyncExchange(self, request)

    def reply(self, request: Request) -> Outcome:
        """A whole exchange.

        Raises:
            InputError: the request cannot be served as it is; nothing was read or stored.
            SessionInUseError: another exchange is writing the session.
            StoreError: the exchange could not be made durable; nothing is left of it.
        """
        with self.stream(request) as exchange:
            return exchange.finish()

    async def areply(self, request: Request) -> Outcome:
        """`reply` in a worker thread; if the task is cancelled, so is the exchange."""
        async with self.astream(request) as exchange:
            return await exchange.finish()
