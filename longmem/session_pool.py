"""`SessionPool`: many sessions on one engine, of which only those in use are held in memory."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from longmem.errors import (
    ConfigError,
    SessionClosedError,
    SessionInUseError,
    SessionNotFoundError,
)
from longmem.parking import Parker
from longmem.residents import Counts, PoolStats, Resident

if TYPE_CHECKING:
    from longmem.engine import Engine
    from longmem.session import Session
    from longmem.store import Store


class SessionPool:
    """Leases sessions, and parks idle ones: their memory is released, the store has everything that
    was committed, and the next lease resumes them where they stood, without reading a token again.

    Sessions in use are never parked. So those in use at once may exceed the budgets, a session larger
    than a budget is served as well, and parked as soon as it is left. Safe to use from threads
    and asyncio tasks alike.

    Args:
        engine: the model that reads and replies.
        store: where the sessions live.
        device_bytes: park the session left longest ago while all together hold more on the device;
            None: no limit.
        host_bytes: the same for host memory.
        idle_seconds: park what was left this long ago, looking as often; None: only budgets park.

    Raises:
        ConfigError: a budget is below what a single session needs.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        *,
        device_bytes: int | None = None,
        host_bytes: int | None = None,
        idle_seconds: float | None = None,
    ) -> None:
        _check(engine, device_bytes, host_bytes, idle_seconds)
        self.engine, self.store = engine, store
        self._device_bytes, self._host_bytes = device_bytes, host_bytes
        self._idle_seconds = idle_seconds
        self._state = threading.Condition()
        self._residents: OrderedDict[str, Resident] = OrderedDict()
        self._parker = Parker(self.sweep, self._held, idle_seconds)
        self._closed = False
        self._counts = Counts()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def session(self, id: str, **options: Any) -> Iterator[Session]:
        """Lease a session: ``with pool.session("alice") as session: session.ask(...)``.

        Who leases a session that is leased already shares it. It still does one exchange at a time:
        a second one raises `SessionInUseError`.

        Args:
            id: its id in the store; a new one is created.
            options: of `Engine.session`: ``system``, ``owner``, ``metadata``, ``create`` ...

        Raises:
            SessionNotFoundError: it belongs to another owner, or is not there and `create` is False.
            SessionClosedError: the pool is closed.
            StoreError: and whatever else `Engine.session` raises.
        """
        resident, session = self._lease(id, options)
        try:
            yield session
        finally:
            self._release(id, resident)

    @asynccontextmanager
    async def asession(self, id: str, **options: Any) -> AsyncIterator[Session]:
        """`session` for asyncio: ``async with pool.asession("alice") as session``."""
        run = self.engine.workers.run
        leasing = asyncio.ensure_future(run(lambda: self._lease(id, options)))
        try:
            resident, session = await asyncio.shield(leasing)
        except asyncio.CancelledError:
            leasing.add_done_callback(lambda done: self._give_back(id, done))
            raise
        try:
            yield session
        finally:
            await asyncio.shield(run(lambda: self._release(id, resident)))

    def fork(
        self,
        source_id: str,
        id: str,
        *,
        at: int | None = None,
        owner: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Fork a session, in use or not, and leave the new one to be leased; see `Session.fork`.

        Raises:
            SessionNotFoundError: there is no session `source_id`.
            StoreError: and whatever else `Session.fork` raises.
        """
        with self.session(source_id, create=False) as source:
            source.fork(id, at=at, owner=owner, metadata=metadata).close()

    def evict(self, id: str) -> None:
        """Park a session now, so that the store may delete or erase it; without effect if it is not
        in memory.

        Raises:
            SessionInUseError: it is in use.
        """
        with self._state:
            resident = self._settled(id)
            if resident is None:
                return
            if resident.leases:
                raise SessionInUseError(
                    f"session {id!r} is in use in this pool; try again when it was left"
                )
            resident.moving = True
        self._park(id, resident)

    def sweep(self) -> int:
        """Park what is over the budgets or idle for too long; gives how many sessions that were."""
        parked = 0
        while (victim := self._next_victim()) is not None:
            self._park(*victim)
            parked += 1
        return parked

    def stats(self) -> PoolStats:
        """What the pool holds now."""
        with self._state:
            held = list(self._residents.items())
            return self._counts.stats(held)

    def close(self) -> None:
        """Park all sessions and lease none any more; those in use are parked when they are left."""
        with self._state:
            self._closed = True
        self._parker.stop()
        self.sweep()

    def _lease(self, id: str, options: dict[str, Any]) -> tuple[Resident, Session]:
        with self._state:
            resident = self._settled(id)
            if self._closed:
                raise SessionClosedError(f"the pool of session {id!r} is closed; make a new pool")
            if resident is None or resident.gone:
                resident = self._residents[id] = Resident()
            else:
                resident.leases += 1
        try:
            session = resident.session or self._open(id, resident, options)
            _join(session, options)
        except BaseException:
            self._release(id, resident)
            raise
        self.sweep()
        return resident, session

    def _settled(self, id: str) -> Resident | None:
        """The session if it is in memory, once it moves no more. To be called with the lock held."""
        while (resident := self._residents.get(id)) is not None and resident.moving:
            self._state.wait()
        return resident

    def _give_back(self, id: str, leased: asyncio.Future[tuple[Resident, Session]]) -> None:
        """Nobody waits for a lease any more."""
        if not leased.cancelled() and leased.exception() is None:
            self._release(id, leased.result()[0])

    def _open(self, id: str, resident: Resident, options: dict[str, Any]) -> Session:
        session, began = None, time.monotonic()
        try:
            session = resident.session = self.engine.session(id, store=self.store, **options)
        finally:
            with self._state:
                resident.moving = False
                if session is None:
                    del self._residents[id]
                else:
                    self._counts.restored(resident, time.monotonic() - began)
                self._state.notify_all()
        return session

    def _release(self, id: str, resident: Resident) -> None:
        with self._state:
            resident.leases -= 1
            if self._residents.get(id) is not resident:
                return  # it could not be opened
            resident.left_at = time.monotonic()
            self._residents.move_to_end(id)
            if not resident.measure() and not resident.leases:
                self._counts.left(resident)
                del self._residents[id]  # closed by whoever leased it
        self.sweep()
        self._parker.start()

    def _held(self) -> int:
        with self._state:
            return len(self._residents)

    def _next_victim(self) -> tuple[str, Resident] | None:
        with self._state:
            stay = [each for each in self._residents.values() if each.leases or not each.moving]
            device = sum(each.bytes_device for each in stay)
            host = sum(each.bytes_host for each in stay)
            over = _above(device, self._device_bytes) or _above(host, self._host_bytes)
            for id, resident in self._residents.items():
                if resident.leases or resident.moving:
                    continue
                idle = _above(time.monotonic() - resident.left_at, self._idle_seconds)
                if over or idle or self._closed:
                    resident.moving = True
                    return id, resident
        return None

    def _park(self, id: str, resident: Resident) -> None:
        try:
            if resident.session is not None:
                resident.session.close()
        finally:
            with self._state:
                del self._residents[id]
                self._counts.left(resident)
                self._counts.parked += 1
                self._state.notify_all()


def _check(engine: Engine, device: int | None, host: int | None, idle: float | None) -> None:
    for name, value in (("device_bytes", device), ("host_bytes", host), ("idle_seconds", idle)):
        if value is not None and not value >= 0:
            raise ConfigError(f"{name} is {value}; choose 0 or more, or None for no limit")
    window = sum(spec.bytes_per_token for spec in engine.info.layers) * engine.config.n_local
    needed = max(window, engine.new_memory().bytes_device)
    if device is not None and device < needed:
        raise ConfigError(
            f"device_bytes={device:,} holds no session: one with a full window needs at least "
            f"{needed:,} bytes; raise device_bytes, or lower MemoryConfig.n_local or topk"
        )


def _join(session: Session, options: Mapping[str, Any]) -> None:
    """Whether a session that is open already is the one asked for; as opening it would check."""
    owner = options.get("owner")
    if owner is not None and session.owner != owner:
        raise SessionNotFoundError(f"owner {owner!r} has no session {session.id!r} in this store")
    session.begin(options.get("system"), options.get("tools"))


def _above(value: float, most: float | None) -> bool:
    return most is not None and value > most
