"""What conformance cases are made of: the list they join, and checks they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from longmem.errors import SessionClosedError
from longmem.store import Commit, SessionHandle, Store

MakeStore = Callable[[], Store]
Case = Callable[[MakeStore], None]

CASES: list[Case] = []
"""Every case, in reading order."""


def case(function: Case) -> Case:
    """Decorator: a function that makes a store, uses it and asserts."""
    CASES.append(function)
    return function


@contextmanager
def raises(kind: type[BaseException]) -> Iterator[None]:
    """Fails unless the block raises `kind` (pytest is no dependency of the package)."""
    try:
        yield
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")


@contextmanager
def closing(handle: SessionHandle) -> Iterator[SessionHandle]:
    """Closes the handle behind the block."""
    try:
        yield handle
    finally:
        handle.close()


def assert_closed(handle: SessionHandle, commit: Commit) -> None:
    """Every use of a closed handle raises."""
    uses: list[Callable[[], Any]] = [
        lambda: handle.info,
        lambda: handle.commit(commit),
        handle.snapshot,
        lambda: handle.read_kv(0, 0, 1),
        lambda: handle.read_spans(0, [(0, 1)]),
        lambda: handle.read_blocks("table", [(0, 1)]),
        lambda: handle.merge(1),
        handle.turns,
        lambda: handle.turns_at([0]),
        lambda: handle.point(0),
        handle.points,
        lambda: handle.rollback(0),
        lambda: handle.search("turn", 1),
    ]
    for use in uses:
        with raises(SessionClosedError):
            use()
