"""Many at once: one writes a session, the others are refused; who leaves leaves nothing behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dialogues
import pytest
from dialogues import ask, held, talk, user
from scripted import Scripted

from longmem import SessionInUseError
from longmem.dialogue import Dialogue, Outcome, Request, TextDelta
from longmem.dialogue.claims import Claims
from longmem.session_pool import SessionPool

LONG = "w " * 40


engine, dialogue = dialogues.engine, dialogues.dialogue


def at_once(n: int, call: Any) -> list[Any]:
    """What each of n threads got or raised, all started together."""
    barrier = threading.Barrier(n)

    def one(i: int) -> Any:
        barrier.wait()
        try:
            return call(i)
        except SessionInUseError as error:
            return error

    with ThreadPoolExecutor(n) as threads:
        return list(threads.map(one, range(n)))


def test_of_requests_for_one_session_one_wins_at_a_time(dialogue: Dialogue) -> None:
    results = at_once(8, lambda i: ask(dialogue, f"m{i} {LONG}"))
    won = [each for each in results if isinstance(each, Outcome)]
    assert won
    assert all("in the middle of an exchange" in str(e) for e in results if e not in won)
    texts = held(dialogue)
    assert len(texts) == 2 * len(won)
    assert sorted(texts[1::2]) == sorted(outcome.message.text for outcome in won)
    assert all(reply == f"re {text}" for text, reply in zip(texts[::2], texts[1::2], strict=True))


def test_a_request_sent_several_times_at_once_is_answered_once(dialogue: Dialogue) -> None:
    for options in ({"idempotency_key": "k"}, {"retry": True}):
        before = len(held(dialogue)) if dialogue.sessions(None) else 0
        results = at_once(6, lambda i, options=options: ask(dialogue, LONG, **options))
        won = [each for each in results if isinstance(each, Outcome)]
        assert sum(not outcome.repeated for outcome in won) <= 1
        assert len(held(dialogue)) in (before, before + 2)
        assert len({outcome.message.id for outcome in won}) == 1
        ask(dialogue, "something else")


def test_a_retry_does_not_fork_again_what_is_being_forked(dialogue: Dialogue) -> None:
    ask(dialogue, "a")
    ask(dialogue, "b")
    with dialogue.stream(Request([user("B")], session="s", at=1)) as exchange:
        next(iter(exchange))
        with pytest.raises(SessionInUseError, match="forked for the same messages"):
            ask(dialogue, "B", at=1, retry=True)
        ask(dialogue, "C", at=1)
        first = exchange.finish()
    again = ask(dialogue, "B", at=1, retry=True)
    assert (again.repeated, again.session) == (True, first.session)


def test_sessions_in_use_at_once_do_not_mix(dialogue: Dialogue) -> None:
    def converse(i: int) -> list[str]:
        sent: list[str] = []
        for k in range(4):
            sent.append(f"s{i} m{k}")
            outcome = ask(dialogue, *(sent if k % 2 else sent[-1:]), session=f"s{i}", owner="o")
            sent.append(outcome.message.text)
        return sent

    for i, sent in enumerate(at_once(8, converse)):
        assert held(dialogue, f"s{i}", "o") == sent


def test_forks_of_one_session_are_written_at_once(dialogue: Dialogue) -> None:
    ask(dialogue, "a")
    ask(dialogue, "b")

    def branch(i: int) -> Outcome:
        while True:
            try:
                return ask(dialogue, "a", "re a", f"B{i}", fork_id=f"f{i}")
            except SessionInUseError:
                continue

    for i, outcome in enumerate(at_once(5, branch)):
        assert outcome.session == f"f{i}"
        assert held(dialogue, f"f{i}") == ["a", "re a", f"B{i}", f"re B{i}"]
    assert held(dialogue) == ["a", "re a", "b", "re b"]


def test_dialogues_over_one_pool_share_their_claims(dialogue: Dialogue) -> None:
    other = Dialogue(dialogue.engine, dialogue.store, pool=dialogue.pool)
    with dialogue.stream(Request([user("a")], session="s")) as exchange:
        next(iter(exchange))
        with pytest.raises(SessionInUseError):
            ask(other, "b")
    other.close()
    assert ask(dialogue, "b").turn == 1


def test_what_is_taken_is_refused_and_what_is_shared_cannot_be_taken() -> None:
    claims = Claims()
    with claims.share("a"), claims.share("a"), claims.take("b", "no"):
        for name in ("a", "b"):
            with pytest.raises(SessionInUseError, match="no"), claims.take(name, "no"):
                raise AssertionError
    with claims.take("a", "no"), claims.take("b", "no"):
        pass


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


def test_an_async_exchange_gives_what_the_blocking_one_gives(dialogue: Dialogue) -> None:
    async def main() -> None:
        async with dialogue.astream(Request([user("a b c")], session="s")) as exchange:
            assert (exchange.session, exchange.repeated) == ("s", False)
            texts = [event.text async for event in exchange if isinstance(event, TextDelta)]
        assert "".join(texts) == exchange.outcome.message.text == "re a b c"
        redo = Request(talk("a b c"), session="s", scope="whole", diverge="rollback")
        assert (await dialogue.areply(redo)).turn == 1
        async with dialogue.astream(Request([user("d e f")], session="s")) as exchange:
            async for _ in exchange:
                break
            assert (await exchange.stop()).message.text == "re"
        assert held(dialogue) == ["a b c", "re a b c", "d e f", "re"]
        with pytest.raises(SessionInUseError):
            async with dialogue.astream(Request([user("x")], session="s")):
                await dialogue.areply(Request([user("y")], session="s"))

    run(main())


@pytest.mark.parametrize("options", [{}, {"at": 1}, {"at": 1, "diverge": "rollback"}])
def test_a_cancelled_task_leaves_nothing(dialogue: Dialogue, options: dict[str, Any]) -> None:
    ask(dialogue, "a")
    ask(dialogue, "b")

    async def consume(begun: asyncio.Event) -> None:
        async with dialogue.astream(Request([user(LONG)], session="s", **options)) as exchange:
            async for _ in exchange:
                begun.set()

    async def main() -> None:
        for wait in (True, False):
            begun = asyncio.Event()
            task = asyncio.create_task(consume(begun))
            await (begun.wait() if wait else asyncio.sleep(0.002))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while True:  # opening goes on in its thread until it notices
                try:
                    outcome = await dialogue.areply(Request([user("c")], session="s", store=False))
                    break
                except SessionInUseError:
                    await asyncio.sleep(0.01)
            assert outcome.session is None
            assert [info.id for info in dialogue.sessions(None)] == ["s"]
            assert held(dialogue) == ["a", "re a", "b", "re b"]

    run(main())


def test_many_tasks_and_one_that_leaves_do_not_disturb_each_other(dialogue: Dialogue) -> None:
    async def one(i: int) -> str:
        request = Request([user(f"hello {i}")], session=f"s{i}")
        if i % 3 == 0:
            async with dialogue.astream(request) as exchange:
                async for _ in exchange:
                    break
        return (await dialogue.areply(request)).message.text

    async def main() -> None:
        texts = await asyncio.gather(*(one(i) for i in range(9)))
        assert texts == [f"re hello {i}" for i in range(9)]
        assert all(held(dialogue, f"s{i}") == [f"hello {i}", texts[i]] for i in range(9))

    run(main())


def test_a_pool_that_parks_at_once_serves_dialogues_as_well(
    engine: Scripted, dialogue: Dialogue
) -> None:
    store = dialogue.pool.store
    dialogue.close()
    with (
        SessionPool(engine, store, host_bytes=0) as pool,
        Dialogue(engine, store, pool=pool) as tight,
    ):
        for text in ("a", "b"):
            ask(tight, text)
        assert ask(tight, "a", "re a", "FORK", diverge="rollback").turn == 3
        assert held(tight) == ["a", "re a", "FORK", "re FORK"]
