"""Items of a conversation that no memory has read: records of a store, in the order they came."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from agents.exceptions import UserError

from longmem.adapters.openai_agents.items import Item, messages_of
from longmem.errors import InputError, SessionInUseError, SessionNotFoundError
from longmem.store import Record

if TYPE_CHECKING:
    from longmem.store import Store

_NAMESPACE = "openai_agents.items"
_PAGE = 64
_TRIES, _PAUSE = 100, 0.05
"""How often, and how many seconds apart, it is looked whether another has made the memory."""
_writing = threading.Lock()


@dataclass(frozen=True)
class KeptItems:
    """One record per item, numbered. A record of None stands for an item that was read since: it
    comes in the transaction that made the memory of it durable.

    Args:
        store: where the records are.
        session: stored id of the session; with it the records go.
        n_turns: tells how many turns its memory has.
        begin: makes an empty memory, so that items kept before the first run go with it when it is
            erased; None: no memory will begin.
    """

    store: Store
    session: str
    n_turns: Callable[[], int]
    begin: Callable[[], object] | None = None

    def read(self, last: int | None = None) -> list[dict[str, Any]]:
        """All items, or the last so many, oldest first."""
        return [value["item"] for _, value in islice(self._newest(), last)][::-1]

    def append(self, items: Iterable[Item], *, below: int | None = None) -> None:
        """Keep items behind those there are.

        Args:
            below: they count once the memory has fewer turns than this; until then they are none.
        """
        with _writing:
            self._settle()
            newest = self._page(None, 1)
            start = int(newest[0][0].rpartition("/")[2]) + 1 if newest else 0
            puts = [
                Record(
                    _NAMESPACE,
                    f"{self.session}/{start + i:012d}",
                    {"item": dict(item)} | ({} if below is None else {"below": below}),
                )
                for i, item in enumerate(items)
            ]
            self._write(puts, ())

    def settle(self) -> None:
        """Items that were to count from now on count for good; what does not count goes."""
        with _writing:
            self._settle()

    def pop(self) -> dict[str, Any] | None:
        """Remove the last item; None if there is none."""
        with _writing:
            newest = next(self._newest(), None)
            if newest is None:
                return None
            key, value = newest
            self._write((), [key])
        item: dict[str, Any] = value["item"]
        return item

    def clear(self) -> None:
        """Remove all."""
        with _writing:
            found = self.store.records.list(_NAMESPACE, f"{self.session}/")
            self._write((), [key for key, _ in found])

    def used(self, sent: Sequence[Item]) -> list[Record]:
        """Records for the commit that reads `sent`: they take the place of the items that are in
        it, the last for the last, whatever stands between them. What was edited on its way to the
        model (the SDK lets callers do that with the latest input) is in it as well."""
        said = [_said(item) for item in sent]
        read, stop = [], len(said)
        for key, value in self._newest():
            wanted = _said(value["item"])
            at = next((i for i in range(stop - 1, -1, -1) if said[i] == wanted), None)
            if at is None and stop == len(said) and _role(said[-1]) == _role(wanted):
                at = stop - 1
            if at is not None and wanted is not None:
                read.append(Record(_NAMESPACE, key, None))
                stop = at
        return read

    def _newest(self) -> Iterator[tuple[str, Any]]:
        """Records of items that were not read, the newest first."""
        after: str | None = None
        while page := self._page(after, _PAGE):
            yield from ((key, value) for key, value in page if self._counts(value))
            after = page[-1][0]

    def _page(self, after: str | None, limit: int) -> list[tuple[str, Any]]:
        return self.store.records.list(
            _NAMESPACE, f"{self.session}/", after=after, limit=limit, newest_first=True
        )

    def _counts(self, value: Any) -> bool:
        return value is not None and self.n_turns() < value.get("below", math.inf)

    def _settle(self) -> None:
        """Only the newest records can be unsettled."""
        newest = self._page(None, 1)
        if not newest or (newest[0][1] is not None and "below" not in newest[0][1]):
            return
        found = self.store.records.list(_NAMESPACE, f"{self.session}/")
        puts = [
            Record(_NAMESPACE, key, {"item": value["item"]})
            for key, value in found
            if self._counts(value) and "below" in value
        ]
        self._write(puts, [key for key, value in found if not self._counts(value)])

    def _write(self, puts: Sequence[Record], deletes: Sequence[str]) -> None:
        gone = [(_NAMESPACE, key) for key in deletes]
        for _ in range(_TRIES):
            try:
                self.store.records.apply(puts, gone, session=self.session)
                return
            except SessionNotFoundError:
                if self.begin is None or not puts:
                    self.store.records.apply(puts, gone)
                    return
            with suppress(InputError):  # it has begun meanwhile
                self._begin(self.begin)
        raise SessionNotFoundError(
            f"session {self.session!r} was deleted while items were added; add them again"
        )

    def _begin(self, begin: Callable[[], object]) -> None:
        try:
            begin()
        except SessionInUseError:  # the first run is making it
            time.sleep(_PAUSE)


def _said(item: Item) -> tuple[Any, ...] | None:
    """What an item says, whatever its form and id; None if a memory could not read it."""
    try:
        message = messages_of([item])[0]
    except UserError:
        return None
    return (message.role, message.text, message.tool_calls, message.tool_call_id, message.reasoning)


def _role(said: tuple[Any, ...] | None) -> Any:
    return said and said[0]
