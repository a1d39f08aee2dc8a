"""The engine's queue."""

from __future__ import annotations

import threading

import pytest

from longmem.fair_lock import FairLock


def test_the_lock_is_granted_in_the_order_in_which_it_was_asked_for():
    lock, order, threads = FairLock(), [], []

    def work(i: int) -> None:
        with lock:
            order.append(i)

    with lock:
        for i in range(20):
            thread = threading.Thread(target=work, args=(i,))
            thread.start()
            while len(lock._waiting) <= i:  # until thread i stands in the queue
                pass
            threads.append(thread)
    for thread in threads:
        thread.join()
    assert order == list(range(20))


def test_one_holder_at_a_time_even_when_one_fails():
    lock, inside, seen = FairLock(), [0], []

    def work() -> None:
        for _ in range(200):
            try:
                with lock:
                    inside[0] += 1
                    seen.append(inside[0])
                    inside[0] -= 1
                    raise ValueError
            except ValueError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {1} and len(seen) == 800


def test_a_waiter_that_is_interrupted_leaves_the_queue(monkeypatch):
    lock = FairLock()

    def interrupted(event, timeout=None):
        raise KeyboardInterrupt

    with lock:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Event, "wait", interrupted)
            with pytest.raises(KeyboardInterrupt):
                lock.__enter__()
        assert not lock._waiting
    with lock:
        pass


def test_a_waiter_interrupted_just_when_it_was_its_turn_passes_the_lock_on(monkeypatch):
    lock = FairLock()

    def interrupted(event, timeout=None):
        lock.__exit__(None, None, None)  # the holder lets go at this very moment
        raise KeyboardInterrupt

    lock.__enter__()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Event, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lock.__enter__()
    with lock:
        pass
