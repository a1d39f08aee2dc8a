"""Read whole conversations into a store, batch by batch, all of it or nothing: a stored session
again (after a change of model, of memory layout, or of damaged files), or a transcript."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from longmem.errors import CorruptDataError
from longmem.feeding import Segment
from longmem.fit import initial_tokens
from longmem.ledger import Draft, Ledger
from longmem.memory import ReadSpan, SessionMemory
from longmem.store import SessionHandle, SessionInfo, Store, TurnRecord

if TYPE_CHECKING:
    from longmem.engine import Engine, Progress

_TOKENS_PER_COMMIT = 8192


def rebuild(
    engine: Engine,
    store: Store,
    handle: SessionHandle,
    info: SessionInfo,
    progress: Progress | None = None,
) -> None:
    """Replay the turns of `handle` into a hidden session, then put it in place at once.

    Turns are read by their recorded ids and spans; by their text where the tokenizer or the
    template is another one, and with look-ups in all layers of a span where those that look up are
    others. Random numbers go on where they stood, if the old snapshot can be read.
    Until the end the old data stays as it is.

    Raises:
        TurnTooLargeError: the system turn is above max_init.
    """
    same_tokens = all(
        handle.info.fingerprint.get(part) == info.fingerprint.get(part)
        for part in ("tokenizer", "template", "keep_reasoning")
    )
    same_layers = all(
        handle.info.fingerprint.get(part) == info.fingerprint.get(part)
        for part in ("layers", "lookup_layers")
    )
    drafts = list(_drafts(engine, handle.turns(), same_tokens, same_layers))
    _replay(engine, store, handle, info, drafts, _random_numbers(handle), progress)


def read_transcript(
    engine: Engine,
    store: Store,
    handle: SessionHandle,
    turns: Sequence[tuple[str, str]],
    progress: Progress | None = None,
) -> None:
    """Let the empty session of `handle` hold these turns. `Session.add` would keep the K/V of all
    of them in memory until its one commit.

    Args:
        turns: (role, text) of each.
        progress: called with (tokens read, tokens to read).

    Raises:
        InputError: a turn is refused.
    """
    drafts: list[Draft] = []
    for role, text in turns:
        ids = engine.chat.turn_ids(role, text, previous=drafts[-1].role if drafts else None)
        drafts.append(Draft(role, text, ids, engine.spans(len(ids))))
    _replay(engine, store, handle, handle.info, drafts, {}, progress)


def _replay(
    engine: Engine,
    store: Store,
    handle: SessionHandle,
    info: SessionInfo,
    drafts: Sequence[Draft],
    state: Mapping[str, Tensor],
    progress: Progress | None,
) -> None:
    """Read the drafts into a hidden session and publish it as that of `handle`."""
    memory = _memory_for(engine, info.id, drafts[0])
    total, done = sum(len(draft.ids) for draft in drafts), 0
    staged = store.stage(handle, info)
    try:
        ledger = Ledger(staged)
        memory.attach(staged)
        for batch in _batches(drafts):
            segments = [Segment(draft.ids, draft.spans) for draft in batch]
            engine.read(memory, segments, _shifted(progress, done, total))
            ledger.commit(batch, memory, state)
            done = ledger.n_tokens
        store.publish(handle, staged)
    finally:
        staged.close()


def _memory_for(engine: Engine, id: str, first: Draft) -> SessionMemory:
    n_init = initial_tokens(engine.config, id, first.role, len(first.ids))
    return engine.new_memory(n_init, journal=True)


def _random_numbers(handle: SessionHandle) -> dict[str, Tensor]:
    try:
        snapshot = handle.snapshot()
    except CorruptDataError:  # a reason to rebuild; a new seed will do
        return {}
    return {"rng": snapshot.state["rng"]} if snapshot and "rng" in snapshot.state else {}


def _shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    """`progress` for one batch that comes after `before` tokens."""
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)


def _drafts(
    engine: Engine, records: Sequence[TurnRecord], same_tokens: bool, same_layers: bool
) -> Iterator[Draft]:
    previous = None
    for record in records:
        if same_tokens:
            ids: Sequence[int] = record.ids
            spans = [ReadSpan(*(span if same_layers else span[:2])) for span in record.spans]
        else:
            ids = engine.chat.turn_ids(
                record.role, record.text, previous=previous, extra=record.extra
            )
            spans = engine.spans(len(ids))
        yield Draft(record.role, record.text, ids, spans, record.extra, record.created_at)
        previous = record.role


def _batches(drafts: Sequence[Draft]) -> Iterator[list[Draft]]:
    batch: list[Draft] = []
    tokens = 0
    for draft in drafts:
        batch.append(draft)
        tokens += len(draft.ids)
        if tokens >= _TOKENS_PER_COMMIT:
            yield batch
            batch, tokens = [], 0
    if batch:
        yield batch
