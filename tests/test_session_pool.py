"""A pool holds in memory what is in use, and loses nothing of the rest."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest
from conftest import SMALL, chatter

from longmem import (
    ConfigError,
    Engine,
    InputError,
    SessionClosedError,
    SessionInUseError,
    SessionNotFoundError,
    SessionPool,
)
from longmem.parking import Parker
from longmem.stores import InMemoryStore, SQLiteStore

REPLY = {"max_new_tokens": 4, "eos_token_id": ()}


def one_session(engine: Engine) -> int:
    """Device bytes of a session of two turns."""
    with engine.session("measured") as session:
        session.add(chatter(1))
        return session.stats().bytes_device


def test_the_session_left_longest_ago_is_parked_first(engine: Engine) -> None:
    size = one_session(engine)
    with (
        InMemoryStore() as store,
        SessionPool(engine, store, device_bytes=2 * size + size // 2) as pool,
    ):
        for id in ("a", "b"):
            with pool.session(id) as session:
                session.add(chatter(1))
        assert pool.stats().resident == ("a", "b")
        with pool.session("a"):
            pass
        with pool.session("c") as session:
            session.add(chatter(1))
        stats = pool.stats()
        assert stats.resident == ("a", "c") and (stats.opened, stats.parked) == (3, 1)
        assert stats.bytes_device <= 2 * size + size // 2
        with pool.session("b") as session:
            assert session.stats().turns == 2
    assert pool.stats().resident == () and pool.stats().parked == 4


def test_a_parked_session_goes_on_bit_for_bit(engine: Engine, tmp_path: Path) -> None:
    def talk(pool: SessionPool) -> list[str]:
        said = []
        for i in range(3):
            with pool.session("a", system="Be brief.") as session:
                session.add(chatter(3, seed=i))
                said.append(session.ask("What now?", temperature=1.0, seed=i, **REPLY).text)
                said.append(session.ask("And now?", temperature=1.0, **REPLY).text)
        return said

    read, said = [], []
    for name, budget in (("kept", None), ("parked", 0)):
        with (
            SQLiteStore(tmp_path / name) as store,
            SessionPool(engine, store, host_bytes=budget) as pool,
        ):
            before = engine.tokens_read
            said.append(talk(pool))
            assert pool.stats().parked == (3 if name == "parked" else 0)
            read.append(engine.tokens_read - before)
    assert said[0] == said[1] and read[0] == read[1]


def test_a_session_in_use_is_shared_and_never_parked(engine: Engine) -> None:
    with InMemoryStore() as store, SessionPool(engine, store, host_bytes=0) as pool:
        with pool.session("a") as session:
            session.add(chatter(12))  # more than the budget: served all the same
            with pool.session("a") as same, pool.session("b") as other:
                assert same is session
                other.add(chatter(1))
                assert pool.sweep() == 0 and pool.stats().leased == ("a", "b")
                stream = session.stream("Go on.", **REPLY)
                stream.next_piece()
                with pytest.raises(SessionInUseError):
                    same.ask("Me, too!", **REPLY)
                assert len(list(stream)) and stream.reply.turn == 25
            assert "a" in pool.stats().resident
        assert "a" not in pool.stats().resident
        with pytest.raises(SessionClosedError):
            session.turns()


def test_a_lease_is_checked_like_an_opening(engine: Engine) -> None:
    with InMemoryStore() as store, SessionPool(engine, store) as pool:
        with pool.session("a", owner="alice", system="Be kind."):
            for _ in range(2):
                with (
                    pytest.raises(SessionNotFoundError, match="bob"),
                    pool.session("a", owner="bob"),
                ):
                    pass
                another = pool.session("a", system="Be rude.")
                with pytest.raises(InputError, match="another system"), another:
                    pass
        with pytest.raises(SessionNotFoundError), pool.session("a", owner="bob"):
            pass
        assert pool.stats().leased == ()
        with pytest.raises(InputError), pool.session("a/b"):
            pass
        assert pool.stats().resident == ("a",)
        with pool.session("a") as session:
            session.close()
        with pool.session("a", owner="alice") as session:
            assert session.stats().turns == 1


def test_a_closed_pool_parks_what_is_in_use_when_it_is_left(engine: Engine) -> None:
    with InMemoryStore() as store:
        pool = SessionPool(engine, store)
        with pool.session("a") as session:
            pool.close()
            session.add(chatter(1))
            with pytest.raises(SessionClosedError, match="pool"), pool.session("b"):
                pass
        assert pool.stats().resident == ()
        with engine.session("a", store=store) as session:
            assert session.stats().turns == 2


def test_idle_sessions_are_parked_after_a_while(engine: Engine) -> None:
    with (
        InMemoryStore() as store,
        SessionPool(engine, store, idle_seconds=0.05) as pool,
        pool.session("used") as used,
    ):
        for id in ("a", "b"):
            with pool.session(id) as session:
                session.add(chatter(1))
        waited = time.monotonic() + 30
        while pool.stats().resident != ("used",) and time.monotonic() < waited:
            time.sleep(0.01)
        assert pool.stats().resident == ("used",)
        assert used.stats().turns == 0


def test_many_threads_and_tasks_share_few_places(engine: Engine) -> None:
    expected = {}
    for i in range(3):
        with engine.session("alone") as session:
            session.add(chatter(2, seed=i))
            expected[i] = [session.ask(f"Number {n}?", **REPLY).text for n in range(2)]

    def work(pool: SessionPool, i: int, said: dict[int, list[str]]) -> None:
        with pool.session(f"t{i}") as session:
            session.add(chatter(2, seed=i))
        for n in range(2):
            with pool.session(f"t{i}") as session:
                said[i].append(session.ask(f"Number {n}?", **REPLY).text)

    async def task(pool: SessionPool, i: int) -> list[str]:
        async with pool.asession(f"a{i}") as session:
            await session.aadd(chatter(2, seed=i))
        said = []
        for n in range(2):
            async with pool.asession(f"a{i}") as session:
                said.append((await session.aask(f"Number {n}?", **REPLY)).text)
        return said

    async def tasks(pool: SessionPool) -> list[list[str]]:
        cut = asyncio.create_task(task(pool, 9))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        cut.cancel()  # while it waits for its lease
        return await asyncio.gather(*(task(pool, i) for i in range(3)))

    with InMemoryStore() as store, SessionPool(engine, store, host_bytes=0) as pool:
        said: dict[int, list[str]] = {i: [] for i in range(3)}
        threads = [threading.Thread(target=work, args=(pool, i, said)) for i in range(3)]
        for thread in threads:
            thread.start()
        assert asyncio.run(tasks(pool)) == list(expected.values())
        for thread in threads:
            thread.join()
        assert said == expected
        assert pool.stats().leased == ()


def test_budgets_that_cannot_work_are_refused(engine: Engine) -> None:
    with InMemoryStore() as store:
        with pytest.raises(ConfigError, match="holds no session"):
            SessionPool(engine, store, device_bytes=1000)
        with pytest.raises(ConfigError, match="idle_seconds is -1"):
            SessionPool(engine, store, idle_seconds=-1)
        wide = Engine(engine.model, engine.tokenizer, SMALL.replace(n_local=400))
        least = sum(spec.bytes_per_token for spec in wide.info.layers) * 400
        with pytest.raises(ConfigError, match="holds no session"):
            SessionPool(wide, store, device_bytes=least - 1)


def test_a_sweep_that_fails_is_followed_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)

    class Pool:
        tries = 0

        def sweep(self) -> int:
            self.tries += 1
            raise OSError("the disk is gone")

        def left(self) -> int:
            return 1

    pool = Pool()
    parker = Parker(pool.sweep, pool.left, 0.01)
    parker.start()
    until = time.monotonic() + 10
    while pool.tries < 3 and time.monotonic() < until:
        time.sleep(0.01)
    parker.stop()
    assert pool.tries >= 3
