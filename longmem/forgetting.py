"""Forget single turns: what came after the first of them is read again, without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from longmem.ledger import Draft
from longmem.memory import ReadSpan
from longmem.opening import resume
from longmem.rebuild import draft_of, read_again
from longmem.store import CommitPoint, SessionHandle, Store, TurnRecord

if TYPE_CHECKING:
    from longmem.engine import Engine, Progress


@dataclass(frozen=True)
class _Rest:
    """What is read again.

    Args:
        batches: the turns of each commit that keeps any.
        heads: of each commit behind the shared ones its number afterwards; None: records that came
            with it go, because it lost a turn that they may tell of.
    """

    batches: Sequence[Sequence[Draft]]
    heads: Mapping[int, int | None]


def forget(
    engine: Engine,
    store: Store,
    handle: SessionHandle,
    gone: frozenset[int],
    state: Mapping[str, Tensor],
    progress: Progress | None = None,
) -> None:
    """Let the session of `handle` hold what it would if the turns `gone` had never been said.

    Commits before the first of them stay as they are. What follows is read again by its recorded ids
    and spans into a hidden stand-in, which is put in place at once; commits end where they ended.

    Args:
        state: tensors to keep with each commit besides the memory's own.

    Raises:
        StoreError: nothing was changed.
    """
    kept = handle.point(min(gone))
    rest = _rest(engine, handle, kept, gone)
    staged = store.stage(handle, handle.info, kept.head)
    try:
        opened = resume(engine, staged)
        read_again(engine, opened.ledger, opened.memory, rest.batches, state, progress)
        store.publish(handle, staged, heads=rest.heads, forgets=True)
    finally:
        staged.close()


def _rest(engine: Engine, handle: SessionHandle, kept: CommitPoint, gone: frozenset[int]) -> _Rest:
    batches: list[list[Draft]] = []
    heads: dict[int, int | None] = {}
    start = kept.n_turns
    for point in handle.points(kept.head):
        turns = handle.turns(start, point.n_turns)
        left = [turn for turn in turns if turn.index not in gone]
        if left:
            batches.append([draft_of(turn) for turn in left])
            if kept.n_turns == 0 and len(batches) == 1:
                batches[0][0] = _first(engine, left[0])
        whole = len(left) == len(turns)
        heads[point.head] = kept.head + len(batches) if whole else None
        start = point.n_turns
    return _Rest(batches, heads)


def _first(engine: Engine, turn: TurnRecord) -> Draft:
    """A turn that is the session's first from now on: in front of it stands what the template puts
    before everything. What it was read as stays, as far as the template writes that there, too."""
    draft = draft_of(turn)
    if turn.index == 0:
        return draft
    ids = engine.chat.turn_ids(turn.role, turn.text, previous=None, extra=turn.extra)
    lead = len(ids) - len(turn.ids)
    if lead < 0 or tuple(ids[lead:]) != tuple(turn.ids):
        return draft_of(turn, ids, engine.spans(len(ids)))
    if not lead:
        return draft
    return draft_of(turn, ids, [ReadSpan(lead, lead), *draft.spans])
