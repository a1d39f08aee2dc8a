"""`LongMemSession`: the SDK's session protocol over longmem's store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from agents.exceptions import UserError
from agents.items import TResponseInputItem
from agents.memory import SessionABC, SessionSettings
from agents.memory.session_settings import resolve_session_limit

from longmem.adapters.openai_agents.items import Item, items_of, message_id
from longmem.adapters.openai_agents.kept_items import KeptItems
from longmem.adapters.openai_agents.named import named
from longmem.adapters.openai_agents.reply_index import place_of
from longmem.dialogue import Dialogue, turn_message
from longmem.dialogue import session_id as stored_name
from longmem.errors import SessionNotFoundError

if TYPE_CHECKING:
    from longmem.store import Store
    from longmem.types import Turn

R = TypeVar("R")

_RECENT = 64
"""Turns in which the calls of outputs that are added again are looked for."""


class LongMemSession(SessionABC):
    """A conversation's items for `Runner.run(..., session=...)`.

    With a `LongMemModel` of the same dialogue the items are the turns that the model's memory holds:
    nothing is stored a second time, nothing is read a second time, and `pop_item` takes the memory
    back as well. What no memory has read yet is kept in the store's records. With any other model,
    that is all of it: a plain store of items, for which a `Store` is enough.

    Args:
        session_id: id of the conversation, `LongMemModel`'s session of that name.
        memory: the model's `Dialogue`, or only a store.
        owner: whom the conversation belongs to.
        session_settings: the SDK's, for instance how many items a run is given.

    Raises:
        UserError: only a store is given, and it holds a memory of that name.
    """

    def __init__(
        self,
        session_id: str,
        memory: Dialogue | Store,
        *,
        owner: str | None = None,
        session_settings: SessionSettings | None = None,
    ) -> None:
        self.session_id, self.owner = session_id, owner
        self.session_settings = session_settings
        self.dialogue = dialogue = memory if isinstance(memory, Dialogue) else None
        self._store = memory.pool.store if isinstance(memory, Dialogue) else memory
        name = dialogue.resolve if dialogue else stored_name
        self._stored_id = name(owner, session_id)
        begin = partial(dialogue.create, owner, session_id) if dialogue else None
        self._kept = KeptItems(self._store, self._stored_id, self._n_turns, begin)
        self._lock = threading.RLock()
        if dialogue is not None:
            self._named = named(
                dialogue, owner, session_id, self._kept
            )  # for as long as this lives
        elif self._n_turns():
            raise UserError(
                f"session {session_id!r} has a memory in this store, of which a LongMemSession over "
                "the store alone knows nothing; give it the model's Dialogue instead"
            )

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """The conversation, oldest first; the latest `limit` items of it."""
        most = resolve_session_limit(limit, self.session_settings)
        items = await self._run(lambda: self._items(most))
        return cast("list[TResponseInputItem]", items)

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Add items; those that the model's memory has by now are not kept again."""
        given = cast("list[dict[str, Any]]", items)
        await self._run(lambda: self._add(given))

    async def pop_item(self) -> TResponseInputItem | None:
        """Remove the last item and return it; None if there is none.

        Where it is in the model's memory, the memory goes back to before the exchange; what of the
        exchange stays is read again with the next one.
        """
        return cast("TResponseInputItem | None", await self._run(self._pop))

    async def clear_session(self) -> None:
        """Remove all items, and the memory of them."""
        await self._run(self._clear)

    async def _run(self, call: Callable[[], R]) -> R:
        def alone() -> R:
            with self._lock:
                return call()

        return await asyncio.to_thread(alone)

    def _items(self, limit: int | None) -> list[dict[str, Any]]:
        if limit is not None and limit <= 0:
            return []
        kept = self._kept.read(limit)
        wanted = None if limit is None else limit - len(kept)
        return [*self._of_turns(wanted), *kept]

    def _of_turns(self, last: int | None) -> list[dict[str, Any]]:
        """The last items of what the memory holds. A turn is one item or more."""
        if last == 0:
            return []
        items = [item for turn in self._turns(last) for item in _items_of_turn(turn)]
        return items if last is None else items[-last:]

    def _turns(self, last: int | None = None) -> list[Turn]:
        if self.dialogue is None:
            return []
        start = 0 if last is None else max(0, self._n_turns() - last)
        try:
            return self.dialogue.turns(self.owner, self.session_id, start)
        except SessionNotFoundError:
            return []

    def _add(self, items: list[dict[str, Any]]) -> None:
        answered: set[Any] = set()
        if any(item.get("type") == "function_call_output" for item in items):
            answered = {turn.extra.get("tool_call_id") for turn in self._turns(_RECENT)} - {None}
        self._kept.append(
            item
            for item in items
            if not self._is_ours(item)
            and not (item.get("type") == "function_call_output" and item.get("call_id") in answered)
        )

    def _is_ours(self, item: Item) -> bool:
        """Whether it is of a reply that this session's memory holds."""
        if self.dialogue is None:
            return False
        id = message_id(item)
        place = place_of(self.dialogue, self.owner, id) if id else None
        return place is not None and place.session == self.session_id

    def _pop(self) -> dict[str, Any] | None:
        kept = self._kept.pop()
        if kept is not None:
            return kept
        last = self._turns(1)
        items = _items_of_turn(last[0]) if last else []
        if not items:
            return None
        self._rewind(last[0].index, items[:-1])
        return items[-1]

    def _rewind(self, turn: int, rest: list[dict[str, Any]]) -> None:
        """Take the memory back to before a turn; keep what goes with it and was not asked for."""
        assert self.dialogue is not None
        with self.dialogue.pool.session(self._stored_id, owner=self.owner) as held:
            to = held.boundary(turn - 1)
        between = self.dialogue.turns(self.owner, self.session_id, to + 1, turn)
        staying = [item for each in between for item in _items_of_turn(each)] + rest
        self._kept.append(staying, below=self._n_turns())  # first: a crash in between loses nothing
        self.dialogue.rollback(self.owner, self.session_id, to)
        self._kept.settle()

    def _clear(self) -> None:
        self._kept.clear()
        if self.dialogue is not None:
            with suppress(SessionNotFoundError):
                self.dialogue.delete(self.owner, self.session_id)

    def _n_turns(self) -> int:
        """Turns of the memory; 0 where there is none."""
        try:
            return self._store.info(self._stored_id).n_turns
        except SessionNotFoundError:
            return 0


def _items_of_turn(turn: Turn) -> list[dict[str, Any]]:
    return [] if turn.role == "system" else items_of(turn_message(turn))
