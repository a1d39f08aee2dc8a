"""Many sessions on one engine: packed passes, and nobody notices the others."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, chatter

from longmem import ConfigError, CorruptDataError, Engine, SessionError, scheduler
from longmem.feeding import Fed, Feed, Segment, Together, Unread
from longmem.memory import ReadSpan, SessionMemory
from longmem.scheduler import Scheduler
from longmem.stores import InMemoryStore, SQLiteStore
from longmem.strand import Strand, StrandCancelled

REPLY = {"max_new_tokens": 10, "eos_token_id": ()}


def in_threads(works: Sequence[Callable[[], Any]], within: float = 120) -> list[Any]:
    """What each call gives, all of them at once; an exception instead of a result is one, too."""
    results: list[Any] = [None] * len(works)

    def run(i: int) -> None:
        try:
            results[i] = works[i]()
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(within)
    assert not any(thread.is_alive() for thread in threads)
    return results


@contextmanager
def watched(engine: Engine) -> Iterator[list[list[Feed]]]:
    """The feeds of every pass that is run meanwhile."""
    seen: list[list[Feed]] = []
    scheduler = engine.scheduler
    run_pass = scheduler._run_pass

    def watch(feeds: Sequence[Feed]) -> Any:
        seen.append(list(feeds))
        return run_pass(feeds)

    scheduler._run_pass = watch
    try:
        yield seen
    finally:
        scheduler._run_pass = run_pass


def exchange(engine: Engine, i: int, **options: Any) -> str:
    """The reply of a session of its own, with its own past."""
    with engine.session(f"s{i}") as session:
        session.add(chatter(2 + i, seed=10 * i))
        return session.ask(f"What about number {i}?", **(REPLY | options)).text


def read_memory(engine: Engine, seed: int, n: int) -> SessionMemory:
    """A memory that has read n tokens."""
    memory = engine.new_memory()
    ids = torch.randint(3, 2000, (n,), generator=torch.Generator().manual_seed(seed)).tolist()
    engine.read(memory, [Segment(ids, engine.spans(n))])
    return memory


def feeds_of(engine: Engine) -> list[Feed]:
    """A prefill of several look-up spans, three decode steps and a recycled one."""
    sizes = [(150, 70), (200, 1), (90, 1), (20, 1), (130, 1)]
    feeds = []
    for i, (past, n) in enumerate(sizes):
        spans = engine.spans(n) if i < 4 else [ReadSpan(1, 0)]
        feeds.append(Feed(read_memory(engine, i, past), list(range(100 + i, 100 + i + n)), spans))
    return feeds


def test_packed_reading_and_decode_steps_equal_each_alone(engine: Engine) -> None:
    alone = [engine.forward([feed])[0].logits for feed in feeds_of(engine)]
    packed = [fed.logits for fed in engine.forward(feeds_of(engine))]
    for one, other in zip(alone, packed, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_eight_sessions_in_threads_get_the_text_each_gets_alone(engine: Engine) -> None:
    sampled = {"temperature": 1.0, "seed": 7}
    options = [{}, {}, {}, {}, sampled, {"repetition_penalty": 1.3}, {"stop": "the"}, {}]
    alone = [exchange(engine, i, **options[i]) for i in range(8)]
    passes, feeds = engine.scheduler.passes, engine.scheduler.feeds
    works = [lambda i=i: exchange(engine, i, **options[i]) for i in range(8)]
    assert in_threads(works) == alone
    assert engine.scheduler.feeds - feeds > 2 * (engine.scheduler.passes - passes), "not packed"
    assert engine.scheduler.active == 0


def test_sixteen_tasks_get_the_text_each_gets_alone(engine: Engine) -> None:
    alone = [exchange(engine, i % 4) for i in range(4)]

    async def one(i: int) -> str:
        async with engine.session(f"s{i}") as session:
            await session.aadd(chatter(2 + i % 4, seed=10 * (i % 4)))
            question = f"What about number {i % 4}?"
            if i % 2:
                return (await session.aask(question, **REPLY)).text
            stream = session.astream(question, **REPLY)
            assert "".join([piece async for piece in stream]) == stream.reply.text
            return stream.reply.text

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(one(i) for i in range(16)))

    assert asyncio.run(all_of_them()) == [alone[i % 4] for i in range(16)]


def test_a_long_text_holds_up_replies_for_one_bounded_pass(engine: Engine) -> None:
    narrow = Engine(engine.model, engine.tokenizer, SMALL, pass_tokens=48)
    alone = exchange(narrow, 1, max_new_tokens=40)
    started = threading.Event()

    def ask() -> str:
        with narrow.session("s1") as session:
            session.add(chatter(3, seed=10))
            started.set()
            return session.ask("What about number 1?", **(REPLY | {"max_new_tokens": 40})).text

    def read() -> int:
        with narrow.session("long") as session:
            started.wait()
            return len(session.add(chatter(60)))

    with watched(narrow) as passes:
        assert in_threads([ask, read]) == [alone, 120]
    steps = [any(feed.trace for feed in feeds) for feeds in passes]
    first, last = steps.index(True), len(steps) - 1 - steps[::-1].index(True)
    together = [feeds for feeds in passes if len(feeds) == 2]
    assert len(together) >= 5 and "False, False" not in str(steps[first : last + 1])
    for feeds in together:  # a look-up span of 32 is never cut
        assert sum(len(feed.ids) for feed in feeds) <= 48


def test_a_stream_that_nobody_reads_stands_still_and_harms_nobody(engine: Engine) -> None:
    alone = [exchange(engine, i) for i in range(3)]
    with engine.session("s0") as session:
        session.add(chatter(2))
        stream = session.stream("What about number 0?", **REPLY)
        said = [stream.next_piece()]
        works = [lambda i=i: exchange(engine, i, max_new_tokens=10) for i in (1, 2)]
        assert in_threads(works) == alone[1:]
        assert stream._strand is not None and len(stream._strand.brought) <= Strand.AHEAD
        said += list(stream)
        assert "".join(said) == stream.reply.text == alone[0]
        assert session.stats().turns == 6
    assert engine.scheduler.active == 0


@pytest.mark.parametrize("how", ["cancel", "stop", "close", "leave"])
@pytest.mark.parametrize("when", ["not begun", "reading", "decoding", "waiting"])
def test_an_exchange_can_be_ended_in_any_state(engine: Engine, how: str, when: str) -> None:
    expected = exchange(engine, 1)
    store = InMemoryStore()
    session = engine.session("a", store=store)
    session.add(chatter(2))
    text = "Go on. " * (200 if when == "reading" else 1)
    stream = session.stream(text, max_new_tokens=600, eos_token_id=())
    pulled, reached = threading.Event(), threading.Event()

    def pull() -> None:
        pulled.set()
        if when != "not begun":
            for _ in range(2 if when == "waiting" else 10_000):
                if stream.next_piece() is None:
                    break
                reached.set()
        reached.set()

    def end() -> None:
        (pulled if when == "reading" else reached).wait()
        if how == "stop" and when != "not begun":
            assert stream.stop().finish_reason == "stopped"
        else:
            {"cancel": stream.cancel, "close": session.close}.get(how, stream.cancel)()

    results = in_threads([pull, end, lambda: exchange(engine, 1)])
    assert results == [None, None, expected]
    session.close()
    assert engine.scheduler.active == 0
    with engine.session("a", store=store) as again:
        turns = 6 if how == "stop" and when != "not begun" else 4
        assert again.stats().turns == turns
        assert again.ask("Still there?", max_new_tokens=2).turn == turns + 1


def damaged(engine: Engine, path: Path) -> tuple[SQLiteStore, str]:
    """A store whose session "bad" cannot fetch its oldest blocks any more."""
    store = SQLiteStore(path)
    with engine.session("bad", store=store) as session:
        session.add(chatter(1))
        name = max(path.rglob("*.safetensors"), key=lambda file: file.stat().st_mtime_ns)
        for i in range(5):
            session.add(chatter(4, seed=i))
    return store, str(name)


def test_a_damaged_file_fails_its_own_session_in_a_packed_pass(
    engine: Engine, tmp_path: Path
) -> None:
    careless = Engine(engine.model, engine.tokenizer, SMALL.replace(host_bytes=0, topk=64))
    alone = [exchange(careless, i) for i in (1, 2)]
    store, file = damaged(careless, tmp_path / "store")
    with careless.session("bad", store=store) as session:
        before = session.turns()
        data = bytearray(Path(file).read_bytes())
        data[len(data) // 4 : -64] = bytes(len(data) - len(data) // 4 - 64)
        Path(file).write_bytes(data)
        works = [lambda: session.ask("What was first?", **REPLY)]
        works += [lambda i=i: exchange(careless, i) for i in (1, 2)]
        results = in_threads(works)
        assert isinstance(results[0], CorruptDataError) and results[1:] == alone
        assert session.turns() == before
        memory, other = session._conversation.memory, read_memory(careless, 1, 90)
        assert memory is not None
        mark = memory.mark()
        spans = [ReadSpan(3, 3)]
        feeds = [Feed(memory, [5, 6, 7], spans), Feed(other, [5, 6, 7], spans)]
        failed, fed = careless.run_pass(feeds)
        assert isinstance(failed, CorruptDataError) and isinstance(fed, Fed)
        memory.rewind(mark)
        expected = careless.forward([Feed(read_memory(careless, 1, 90), [5, 6, 7], spans)])
        torch.testing.assert_close(fed.logits, expected[0].logits, atol=1e-5, rtol=1e-5)
    store.close()


def test_a_steering_that_fails_fails_its_own_reply(engine: Engine) -> None:
    class Broken:
        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            if ids.shape[1] > 60:
                raise ArithmeticError("mine")
            return scores

    from transformers import LogitsProcessorList

    broken = {"logits_processor": LogitsProcessorList([Broken()]), "max_new_tokens": 100}
    works = [lambda: exchange(engine, 0, **broken), lambda: exchange(engine, 1)]
    failed, text = in_threads(works)
    assert isinstance(failed, ArithmeticError) and text == exchange(engine, 1)


def test_a_criterion_that_uses_its_own_engine_fails_its_own_reply(engine: Engine) -> None:
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Judge(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped here
        def __init__(self, catches: bool) -> None:
            self.catches, self.caught = catches, 0

        def __call__(self, ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
            try:
                exchange(engine, 2)
            except SessionError:
                if not self.catches:
                    raise
                self.caught += 1
            return torch.tensor([False])

    alone = [exchange(engine, i) for i in range(3)]
    strict, lenient = Judge(False), Judge(True)
    works = [
        lambda: exchange(engine, 0, stopping_criteria=StoppingCriteriaList([strict])),
        lambda: exchange(engine, 0, stopping_criteria=StoppingCriteriaList([lenient])),
    ]
    (failed,) = in_threads(works[:1], within=20)
    assert isinstance(failed, SessionError) and "one of its own passes" in str(failed)
    assert in_threads([works[1], lambda: exchange(engine, 1)], within=20) == alone[:2]
    assert lenient.caught > 0 and engine.scheduler.active == 0
    assert exchange(engine, 2) == alone[2]


def test_inference_mode_in_one_thread_is_no_matter_to_the_others(engine: Engine) -> None:
    def inferring() -> str:
        with torch.inference_mode():
            return exchange(engine, 1)

    alone = exchange(engine, 1)
    assert in_threads([inferring, lambda: exchange(engine, 1), inferring]) == [alone] * 3


def test_sessions_opened_and_dropped_leave_nothing_behind(engine: Engine, tmp_path: Path) -> None:
    def held() -> tuple[int, int, int]:
        gc.collect()
        fds = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        return threading.active_count(), fds, len(gc.get_objects())

    def drop(n: int, talk: int) -> None:
        for i in range(n):
            engine.session(f"dropped {i}")
        with SQLiteStore(tmp_path / "store") as store:
            for i in range(talk):
                session = engine.session(f"dropped {i}")
                stream = session.stream("Hello?", **REPLY)
                assert stream.next_piece() is not None
                del session, stream  # in the middle of a reply
                with engine.session("stored", store=store) as session:
                    session.ask("Hello?", **REPLY)

    drop(10, 2)
    threads, fds, objects = held()
    drop(2000, 8)
    after = held()
    assert engine.scheduler.active == 0
    assert after[0] <= threads and after[1] <= fds
    assert after[2] < objects + 1000


def test_bad_feeds_are_refused_before_they_meet_others(engine: Engine) -> None:
    memory = engine.new_memory()
    with pytest.raises(ValueError, match="cover 2 tokens, but 1"):
        engine.forward([Feed(memory, [1], [ReadSpan(2, 2)])])
    with pytest.raises(ValueError, match="token ids have to lie within"):
        engine.forward([Feed(memory, [10**6], [ReadSpan(1, 1)])])
    feed = Feed(memory, [1], [ReadSpan(1, 1)])
    with pytest.raises(ValueError, match="fed once in a pass"):
        engine.forward([feed, feed])
    with pytest.raises(ConfigError, match="pass_tokens is 0"):
        Engine(engine.model, engine.tokenizer, SMALL, pass_tokens=0)


class Toy:
    """Passes that read nothing; strands that want `n` steps of `tokens` tokens."""

    def __init__(self, budget: int) -> None:
        self.passes: list[list[int]] = []
        self.scheduler = Scheduler(self.run_pass, budget, budget)

    def run_pass(self, feeds: Sequence[Feed]) -> list[Any]:
        self.passes.append([len(feed.ids) for feed in feeds])
        return [Fed(torch.zeros(1), None) for _ in feeds]  # type: ignore[arg-type]  # never looked at

    def strand(self, n: int, tokens: int = 1, whole: bool = True) -> Strand[int]:
        def steps(bring: Callable[[int], None]) -> Any:
            for i in range(n):
                yield Together([Feed(None, [0] * tokens, ())])  # type: ignore[arg-type]  # ditto
                bring(i)

        return Strand(steps, whole)


def test_decode_steps_go_first_and_a_long_one_is_not_passed_over_for_ever() -> None:
    toy = Toy(budget=30)
    strands = [toy.strand(6, 1) for _ in range(25)] + [toy.strand(2, 20), toy.strand(2, 20)]
    everybody_there = threading.Barrier(len(strands))

    def work(strand: Strand[int]) -> None:
        everybody_there.wait()
        list(toy.scheduler.run(strand))

    assert in_threads([lambda s=s: work(s) for s in strands]) == [None] * 27
    assert sum(len(sizes) for sizes in toy.passes) == 25 * 6 + 4
    assert all(sum(sizes) <= 30 + 20 for sizes in toy.passes)
    assert all(sorted(sizes) == sizes for sizes in toy.passes)
    assert toy.scheduler.feeds == 154 and toy.scheduler.active == 0


def test_turns_are_cut_between_look_up_spans_wherever_there_is_room() -> None:
    segments = [
        Segment(range(10), [ReadSpan(4, 4), ReadSpan(6, 6)]),
        Segment([7], [ReadSpan(1, 1)]),
    ]
    unread = Unread(None, segments, 100)  # type: ignore[arg-type]  # only handed on
    assert unread.within(3, must=False) == () and unread.tokens == 11
    (feed,) = unread.within(3, must=True)
    assert (list(feed.ids), feed.turn_starts) == ([0, 1, 2, 3], [0])
    (feed,) = unread.within(7, must=False)
    assert (list(feed.ids), feed.turn_starts) == ([4, 5, 6, 7, 8, 9, 7], [6])
    assert unread.tokens == 0


def test_an_owner_that_is_interrupted_while_it_waits_hands_the_lead_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toy = Toy(budget=30)
    waiting, leader = toy.strand(3), toy.strand(1)

    def interrupted(event: threading.Event, timeout: float | None = None) -> bool:
        toy.scheduler._hand_on(leader)  # called to lead at this very moment
        raise KeyboardInterrupt

    toy.scheduler._leader = leader  # another thread leads
    with monkeypatch.context() as patch:
        patch.setattr(threading.Event, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(toy.scheduler.run(waiting))
    assert toy.scheduler._leader is None and toy.scheduler.active == 0
    assert list(toy.scheduler.run(toy.strand(2, whole=False))) == [0, 1]


def interrupted_at(k: int, work: Callable[[], Any]) -> tuple[bool, bool]:
    """Run it with a KeyboardInterrupt at the k-th line of the scheduler: did it come, was it told?"""
    lines, before = 0, sys.gettrace()

    def at_line(frame: Any, event: str, _: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        if event == "line" and lines == k:
            sys.settrace(before)
            raise KeyboardInterrupt
        return at_line

    def trace(frame: Any, event: str, _: Any) -> Any:
        return at_line if frame.f_code.co_filename == scheduler.__file__ else None

    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True, True
    finally:
        sys.settrace(before)
    return lines >= k, False


def test_an_interrupt_at_any_line_leaves_a_scheduler_that_goes_on() -> None:
    def one(k: int) -> bool:
        toy = Toy(budget=30)
        strand = toy.strand(2, whole=False)
        came, told = interrupted_at(k, lambda: list(toy.scheduler.run(strand)))
        assert came == told, f"the interrupt at line {k} was lost"
        assert not strand.in_pass and toy.scheduler._leading is None, f"line {k}"
        assert toy.scheduler._leader is None, f"line {k}"
        assert list(toy.scheduler.run(toy.strand(2, whole=False))) == [0, 1], f"line {k}"
        return came

    k = 1
    while True:
        (came,) = in_threads([lambda k=k: one(k)], within=10)
        if isinstance(came, BaseException):
            raise came
        if not came:
            break
        k += 1
    assert k > 100


def test_the_main_thread_is_served_among_workers_of_another_inference_mode() -> None:
    toy = Toy(budget=30)
    run_pass = toy.run_pass
    started, served, behind = threading.Barrier(4), threading.Event(), []

    def slow(feeds: Sequence[Feed]) -> list[Any]:
        time.sleep(0.001)
        return run_pass(feeds)

    toy.scheduler._run_pass = slow

    def work() -> None:
        with torch.inference_mode():
            started.wait()
            for _ in range(200):
                if served.is_set():
                    return
                list(toy.scheduler.run(toy.strand(8)))
            behind.append(1)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(3)]
    for worker in workers:
        worker.start()
    started.wait()
    assert list(toy.scheduler.run(toy.strand(5))) == []
    served.set()
    for worker in workers:
        worker.join(20)
    assert not behind, "the main thread was served when the others had nothing left to do"


def test_the_lead_goes_to_the_main_thread_where_no_other_can_serve_its_strand() -> None:
    toy = Toy(budget=30)
    mine, worker = toy.strand(1), threading.Thread()
    with torch.inference_mode():
        own, other = toy.strand(1), toy.strand(1)
    toy.scheduler._waiting = {mine: threading.main_thread(), other: worker}
    for strand, leader in [(own, mine), (mine, other)]:
        in_threads([lambda s=strand: toy.scheduler._hand_on(s)])
        assert toy.scheduler._leader is leader
    same = toy.strand(1)
    toy.scheduler._waiting = {mine: threading.main_thread(), same: worker}
    in_threads([lambda: toy.scheduler._hand_on(toy.strand(1))])
    assert toy.scheduler._leader is same


def test_a_pass_that_fails_as_a_whole_fails_the_strands_in_it_and_no_other() -> None:
    toy = Toy(budget=30)
    run_pass = toy.run_pass

    def exhausted(feeds: Sequence[Feed]) -> list[Any]:
        raise MemoryError("no room")

    toy.scheduler._run_pass = exhausted
    with pytest.raises(MemoryError):
        list(toy.scheduler.run(toy.strand(2)))
    toy.scheduler._run_pass = run_pass
    assert list(toy.scheduler.run(toy.strand(2, whole=False))) == [0, 1]


def test_a_cancelled_strand_tells_its_owner_and_is_in_no_further_pass() -> None:
    toy = Toy(budget=30)
    strand = toy.strand(5, whole=False)
    pieces = toy.scheduler.run(strand)
    assert next(pieces) == 0
    toy.scheduler.cancel(strand)
    with pytest.raises(StrandCancelled):
        list(pieces)
    assert len(toy.passes) == 1 and toy.scheduler.active == 0


def test_the_main_thread_leads_only_its_own_strand() -> None:
    toy = Toy(budget=30)
    mine, other = toy.strand(3, whole=False), toy.strand(2, whole=False)
    run = toy.scheduler.run(other)
    (piece,) = in_threads([lambda: next(run)])
    assert piece == 0 and other.wants_pass
    assert list(toy.scheduler.run(mine)) == [0, 1, 2]
    assert toy.passes == [[1]] * 4
    run.close()
    assert toy.scheduler.active == 0


def test_a_reply_says_why_it_is_not_there(engine: Engine) -> None:
    with engine.session("a") as session:
        stream = session.stream("Hello?", **REPLY)
        stream.cancel()
        with pytest.raises(SessionError, match="was cancelled"):
            stream.finish()
