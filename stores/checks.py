"""What every store refuses before it writes anything: commits that do not fit their session."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from longmem.errors import InputError, StaleWriterError
from longmem.store import Commit, SessionInfo, TurnRecord
from longmem.stores.header import DTYPES
from longmem.stores.rows import to_json

_STORABLE = frozenset(DTYPES.values())


def check_id(session_id: str) -> None:
    """Refuse an id that no database could keep.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        session_id.encode()
    except UnicodeEncodeError:
        raise InputError(f"session id {session_id!r} is not UTF-8") from None


def check_commit(info: SessionInfo, commit: Commit) -> None:
    """Refuse a commit that does not continue the session described by `info`.

    Raises:
        StaleWriterError: it was built on another head.
        InputError: gaps in positions or turns, K/V of another layout or dtype, a tensor that
            cannot be stored, a record that is not JSON-able.
    """
    if commit.parent != info.head:
        raise StaleWriterError(
            f"session {info.id!r}: the commit builds on head {commit.parent}, the session is at"
            f" {info.head}; nothing was written. Close the session and open it again."
        )
    if commit.start != info.n_tokens:
        raise _refused(info, f"starts at {commit.start}, but {info.n_tokens} tokens are committed")
    _check_turns(info, commit)
    _check_kv(info, commit)
    for name, tensor in {**commit.blocks, **commit.state}.items():
        if tensor.dtype not in _STORABLE:
            raise _refused(info, f"holds {name!r} of dtype {tensor.dtype}, which has no file form")
    for record in commit.records:
        to_json(record.value)
    for name, tensor in commit.blocks.items():
        if tensor.dim() == 0:
            raise _refused(info, f"holds block tensor {name!r} without a dimension to append along")


def check_rows(info: SessionInfo, layer: int, start: int, stop: int) -> None:
    """Refuse K/V rows that were never committed.

    Raises:
        IndexError: no such layer or position.
    """
    if not 0 <= layer < len(info.layout):
        raise IndexError(f"session {info.id!r} has no layer {layer}, it has {len(info.layout)}")
    if not 0 <= start <= stop <= info.n_tokens:
        raise IndexError(
            f"session {info.id!r}: rows {start} to {stop} of {info.n_tokens} committed ones"
        )


def check_block_rows(info: SessionInfo, name: str, start: int, stop: int, rows: int) -> None:
    """Refuse rows of an append-only tensor that were never committed.

    Raises:
        IndexError: no such rows.
    """
    if not 0 <= start <= stop <= rows:
        raise IndexError(
            f"session {info.id!r}: rows {start} to {stop} of {name!r}, which has {rows}"
        )


def check_positions(info: SessionInfo, positions: Sequence[int]) -> None:
    """Refuse token positions that were never committed.

    Raises:
        IndexError: a position outside ``0 .. n_tokens - 1``.
    """
    for position in positions:
        if not 0 <= position < info.n_tokens:
            raise IndexError(
                f"session {info.id!r}: position {position} of {info.n_tokens} committed ones"
            )


def _check_turns(info: SessionInfo, commit: Commit) -> None:
    position = commit.start
    for index, turn in enumerate(commit.turns, info.n_turns):
        if turn.index != index or turn.start != position:
            raise _refused(
                info, f"has turn {turn.index} at {turn.start} where {index} at {position} belongs"
            )
        _check_turn(info, turn)
        position = turn.stop
    if position != commit.stop:
        raise _refused(info, f"stops at {commit.stop}, its turns at {position}")


def _check_turn(info: SessionInfo, turn: TurnRecord) -> None:
    if turn.spans and sum(span[0] for span in turn.spans) != len(turn.ids):
        raise _refused(info, f"has turn {turn.index} whose spans do not sum to its tokens")
    try:
        turn.text.encode()
    except UnicodeEncodeError:
        raise _refused(info, f"has turn {turn.index} with text that is not UTF-8") from None


def _check_kv(info: SessionInfo, commit: Commit) -> None:
    rows = commit.stop - commit.start
    expected = [(rows, 2, heads, dim) for heads, dim in info.layout]
    if [tuple(tensor.shape) for tensor in commit.kv] != expected:
        raise _refused(info, f"has K/V of shapes {_shapes(commit.kv)} instead of {expected}")
    for tensor in commit.kv:
        if str(tensor.dtype) != f"torch.{info.dtype}":
            raise _refused(info, f"has K/V of {tensor.dtype}, the session holds {info.dtype}")


def _shapes(tensors: Sequence[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors]


def _refused(info: SessionInfo, what: str) -> InputError:
    return InputError(f"session {info.id!r}: the commit {what}; nothing was written")
