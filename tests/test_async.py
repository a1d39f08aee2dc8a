"""Sessions under asyncio: whoever stops listening leaves no trace, and never blocks the next."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from conftest import chatter

from longmem import (
    AsyncReplyStream,
    ConfigError,
    Engine,
    Session,
    SessionClosedError,
    SessionError,
    SessionInUseError,
    TurnTooLargeError,
)
from longmem.stores import InMemoryStore

LONG = {"max_new_tokens": 400, "eos_token_id": ()}

Talk = Callable[[Session], Awaitable[None]]


def run(engine: Engine, talk: Talk) -> None:
    """`talk` with a session of six turns, of which none is forgotten or added by the way."""

    async def main() -> None:
        async with engine.session("a") as session:
            await session.aadd(chatter(3))
            await asyncio.wait_for(talk(session), 120)
            assert [turn.text for turn in session.turns()[:6]] == [text for _, text in chatter(3)]

    asyncio.run(main())


async def answers(session: Session, turns: int) -> None:
    """The session, of so many turns, goes on as if nothing else had been said."""
    assert session.stats().turns == turns
    reply = await session.aask("What now?", max_new_tokens=2)
    assert reply.turn == turns + 1


def test_a_stream_gives_the_pieces_and_the_reply_of_the_blocking_one(engine: Engine) -> None:
    with engine.session("b") as blocking:
        blocking.add(chatter(3))
        expected = blocking.ask("What now?", max_new_tokens=12)

    async def talk(session: Session) -> None:
        stream = session.astream("What now?", max_new_tokens=12)
        assert isinstance(stream, AsyncReplyStream)
        with pytest.raises(SessionError, match="not through"):
            _ = stream.reply
        pieces = [piece async for piece in stream]
        assert "".join(pieces) == stream.reply.text == expected.text
        assert stream.reply.turn == 7
        assert [piece async for piece in stream] == []
        await stream.cancel()  # too late
        assert session.stats().turns == 8

    run(engine, talk)


def test_after_a_break_the_next_exchange_begins_at_once(engine: Engine) -> None:
    async def talk(session: Session) -> None:
        for turns in (6, 8, 10):
            async for _ in session.astream("Go on.", **LONG):
                break
            await answers(session, turns)
        stream = session.astream("Go on.", **LONG)  # still held when it is left
        async for _ in stream:
            break
        await session.aadd("user", "And?")
        with pytest.raises(SessionError, match="was cancelled"):
            _ = stream.reply

    run(engine, talk)


def test_an_error_in_the_loop_drops_the_exchange(engine: Engine) -> None:
    async def talk(session: Session) -> None:
        with pytest.raises(KeyError, match="mine"):
            async for _ in session.astream("Go on.", **LONG):
                raise KeyError("mine")
        await answers(session, 6)

    run(engine, talk)


def test_a_generator_around_a_stream_may_be_left_as_well(engine: Engine) -> None:
    async def handler(session: Session) -> AsyncIterator[str]:
        async for piece in session.astream("Go on.", **LONG):
            yield piece

    async def talk(session: Session) -> None:
        async for _ in handler(session):
            break
        assert (await session.aask("What now?", max_new_tokens=2)).turn == 7
        async for _ in handler(session):
            break
        await session.aadd("user", "And?")
        async for _ in handler(session):
            break

    run(engine, talk)


def test_a_stream_that_is_listened_to_keeps_the_session_in_use(engine: Engine) -> None:
    async def talk(session: Session) -> None:
        heard = aiter(session.astream("Go on.", max_new_tokens=8, eos_token_id=()))
        await anext(heard)
        for call in (session.aask("Me, too!"), session.aadd("user", "Me, too!")):
            with pytest.raises(SessionInUseError):
                await call
        with pytest.raises(SessionInUseError):
            async for _ in session.astream("Me, too!"):
                pass
        assert [piece async for piece in heard]
        assert session.stats().turns == 8
        heard = aiter(session.astream("Go on.", **LONG))
        await anext(heard)
        with pytest.raises(SessionInUseError):
            await session.aask("Me, too!")
        del heard
        await answers(session, 8)

    run(engine, talk)


def test_leaving_the_block_drops_the_exchange_and_stopping_keeps_it(engine: Engine) -> None:
    async def talk(session: Session) -> None:
        async with session.astream("Go on.", **LONG) as stream:
            await anext(aiter(stream))
        await answers(session, 6)
        async with session.astream("Go on.", **LONG) as stream:
            said = ""
            async for piece in stream:
                said += piece
                if len(said) > 20:
                    reply = await stream.stop()
        assert reply == stream.reply and reply.finish_reason == "stopped"
        assert reply.text.startswith(said.rstrip()) and reply.turn == 9
        assert (await session.astream("Once more.", **LONG).stop()).turn == 11
        async for _ in (stream := session.astream("Go on.", **LONG)):
            await stream.cancel()
        await answers(session, 12)
        async with session.astream("Never listened to."):
            pass
        await answers(session, 14)

    run(engine, talk)


@pytest.mark.parametrize("pause", [0.0, 0.002, 0.05, 0.2])
@pytest.mark.parametrize("impatient", [False, True])
def test_cancelling_the_task_drops_the_exchange(
    engine: Engine, pause: float, impatient: bool
) -> None:
    async def listen(session: Session) -> None:
        async for _ in session.astream("Go on.", **LONG):
            pass

    async def talk(session: Session) -> None:
        for turns, work in ((6, listen(session)), (8, session.aask("Go on.", **LONG))):
            task = asyncio.create_task(work)
            await asyncio.sleep(pause)
            task.cancel()
            if impatient:  # the clean-up itself is cancelled, too, and nobody awaits the task
                await asyncio.sleep(0)
                task.cancel()
            else:
                with pytest.raises(asyncio.CancelledError):
                    await task
            await answers(session, turns)
            assert task.cancelled()

    run(engine, talk)


def test_a_reply_that_takes_too_long_is_given_up(engine: Engine) -> None:
    async def talk(session: Session) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await session.aask("Go on.", **LONG)
        await answers(session, 6)

    run(engine, talk)


def test_reading_reports_progress_from_its_thread(engine: Engine) -> None:
    seen: list[tuple[int, int]] = []
    threads: set[str] = set()

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        threads.add(threading.current_thread().name)

    async def talk(session: Session) -> None:
        await session.aadd(chatter(40), progress=progress)

    run(engine, talk)
    assert len(seen) > 1 and seen[-1][0] == seen[-1][1]
    assert threading.current_thread().name not in threads


def test_the_block_of_a_session_closes_it(engine: Engine) -> None:
    async def main() -> None:
        with InMemoryStore() as store:
            async with engine.session("a", store=store) as session:
                await session.aask("Hello.", max_new_tokens=2)
                async for _ in session.astream("Go on.", **LONG):
                    break
            with pytest.raises(SessionClosedError):
                await session.aask("Hello?")
            async with engine.session("a", store=store) as session:
                assert session.stats().turns == 2

    asyncio.run(main())


def test_what_is_refused_is_refused_before_anything_is_read(engine: Engine) -> None:
    small = Engine(engine.model, engine.tokenizer, engine.config.replace(max_turn_bytes=100))

    async def main() -> None:
        async with small.session("a") as session:
            with pytest.raises(TurnTooLargeError):
                session.astream("x" * 101)
            with pytest.raises(ConfigError, match="no sampling option 'max_tokens'"):
                await session.aask("Hi.", max_tokens=3)
            assert (await session.aask("Hi.", max_new_tokens=2)).turn == 1

    asyncio.run(main())
