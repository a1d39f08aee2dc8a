"""`SessionPool`: many sessions on one engine, of which only those in use are held in memory."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from longmem.errors import ConfigError, SessionClosedError, SessionError, SessionNotFoundError
from longmem.parking import Parker

if TYPE_CHECKING:
    from longmem.engine import Engine
    from longmem.session import Session
    from longmem.store import Store


@dataclass(eq=False)
class _Resident:
    """A session that is held in memory. While it is opened or parked it is `moving`."""

    session: Session | None = None
    leases: int = 1
    moving: bool = True
    bytes_device: int = 0
    bytes_host: int = 0
    left_at: float = 0.0


@dataclass(frozen=True)
class PoolStats:
    """What a pool holds and did.

    Args:
        resident: ids of the sessions in memory; those that were left longest ago first.
        leased: ids of those in use.
        bytes_device, bytes_host: of all of them, as `SessionStats` counts them.
        opened, parked: how often a session was opened, and parked.
    """

    resident: tuple[str, ...]
    leased: tuple[str, ...]
    bytes_device: int
    bytes_host: int
    opened: int
    parked: int


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
        self._residents: OrderedDict[str, _Resident] = OrderedDict()
        self._parker = Parker(self.sweep, self._held, idle_seconds)
        self._closed = False
        self._opened = self._parked = 0

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
            options: of `Engine.session`: ``system``, ``owner``, ``metadata`` ...

        Raises:
            SessionNotFoundError: it belongs to another owner.
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
        return PoolStats(
            resident=tuple(id for id, _ in held),
            leased=tuple(id for id, each in held if each.leases),
            bytes_device=sum(each.bytes_device for _, each in held),
            bytes_host=sum(each.bytes_host for _, each in held),
            opened=self._opened,
            parked=self._parked,
        )

    def close(self) -> None:
        """Park all sessions and lease none any more; those in use are parked when they are left."""
        with self._state:
            self._closed = True
        self._parker.stop()
        self.sweep()

    def _lease(self, id: str, options: dict[str, Any]) -> tuple[_Resident, Session]:
        with self._state:
            while (resident := self._residents.get(id)) is not None and resident.moving:
                self._state.wait()
            if self._closed:
                raise SessionClosedError(f"the pool of session {id!r} is closed; make a new pool")
            if resident is None:
                resident = self._residents[id] = _Resident()
            else:
                resident.leases += 1
        try:
            session = resident.session or self._open(id, resident, options)
            _join(session, options.get("owner"), options.get("system"))
        except BaseException:
            self._release(id, resident)
            raise
        self.sweep()
        return resident, session

    def _give_back(self, id: str, leased: asyncio.Future[tuple[_Resident, Session]]) -> None:
        """Nobody waits for a lease any more."""
        if not leased.cancelled() and leased.exception() is None:
            self._release(id, leased.result()[0])

    def _open(self, id: str, resident: _Resident, options: dict[str, Any]) -> Session:
        session = None
        try:
            session = resident.session = self.engine.session(id, store=self.store, **options)
        finally:
            with self._state:
                resident.moving = False
                if session is None:
                    del self._residents[id]
                else:
                    self._opened += 1
                    _measure(resident)
                self._state.notify_all()
        return session

    def _release(self, id: str, resident: _Resident) -> None:
        with self._state:
            resident.leases -= 1
            if self._residents.get(id) is not resident:
                return  # it could not be opened
            resident.left_at = time.monotonic()
            self._residents.move_to_end(id)
            if not _measure(resident) and not resident.leases:
                del self._residents[id]  # closed by whoever leased it
        self.sweep()
        self._parker.start()

    def _held(self) -> int:
        with self._state:
            return len(self._residents)

    def _next_victim(self) -> tuple[str, _Resident] | None:
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

    def _park(self, id: str, resident: _Resident) -> None:
        try:
            if resident.session is not None:
                resident.session.close()
        finally:
            with self._state:
                del self._residents[id]
                self._parked += 1
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


def _join(session: Session, owner: str | None, system: str | None) -> None:
    """Whether a session that is open already is the one asked for; as opening it would check."""
    if owner is not None and session.owner != owner:
        raise SessionNotFoundError(f"owner {owner!r} has no session {session.id!r} in this store")
    session.begin(system)


def _measure(resident: _Resident) -> bool:
    """Count a session's bytes; False if it was closed."""
    try:
        stats = resident.session.stats() if resident.session else None
    except SessionError:
        return False
    if stats is not None:
        resident.bytes_device, resident.bytes_host = stats.bytes_device, stats.bytes_host
    return stats is not None


def _above(value: float, most: float | None) -> bool:
    return most is not None and value > most
