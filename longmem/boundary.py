"""Where a fork or a rollback may end: behind a whole commit."""

from __future__ import annotations

from longmem.errors import InputError
from longmem.store import CommitPoint, SessionHandle


def boundary(handle: SessionHandle, turn: int) -> int:
    """The largest index <= `turn` of a turn that ends a commit; -1: before all turns.

    Raises:
        InputError: `turn` is no index of a turn, nor -1.
    """
    return handle.point(_checked(handle, turn) + 1).n_turns - 1


def point_behind(handle: SessionHandle, turn: int, what: str) -> CommitPoint:
    """The commit that ends with `turn`; head 0 for -1.

    Args:
        what: "fork" or "rollback", for messages.

    Raises:
        InputError: `turn` is no index of a turn, nor -1, or lies inside an exchange.
    """
    point = handle.point(_checked(handle, turn) + 1)
    if point.n_turns != turn + 1:
        later = next(each for each in handle.points(point.head) if each.n_turns > turn)
        raise InputError(
            f"session {handle.info.id!r}: turn {turn} lies inside an exchange, which is kept whole "
            f"or not at all; end the {what} at turn {point.n_turns - 1} or {later.n_turns - 1}"
        )
    return point


def check_index(id: str, n_turns: int, turn: object, least: int = 0) -> int:
    """`turn`, an index of one of `n_turns` turns.

    Args:
        id: the session's, for the message.
        least: -1 where that stands for none of the turns.

    Raises:
        InputError: it is not.
    """
    if isinstance(turn, bool) or not isinstance(turn, int):
        raise InputError(f"session {id!r}: a turn is named by its index, not by {turn!r}")
    if not least <= turn < n_turns:
        some = f"{least} .. {n_turns - 1}" if n_turns > least else "none yet"
        raise InputError(
            f"session {id!r} has no turn {turn}; its turns are {some}, -1 stands for the time before"
            if least < 0
            else f"session {id!r} has no turn {turn}; its turns are {some}"
        )
    return turn


def _checked(handle: SessionHandle, turn: int) -> int:
    return check_index(handle.info.id, handle.info.n_turns, turn, -1)
