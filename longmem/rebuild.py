"""Read whole conversations into a store, commit by commit, all of it or nothing: a stored session
again (after a change of model, of memory layout, or of damaged files), or a transcript."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
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
    others. Commits end where they ended, because forks end there. Random numbers go on where they
    stood, if the old snapshot can be read. Until the end the old data stays as it is.

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
    ends = [point.n_turns for point in handle.points()]
    batches = [drafts[start:stop] for start, stop in pairwise([0, *ends])]
    _replay(engine, store, handle, info, batches, _random_numbers(handle), progress)


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
    _replay(engine, store, handle, handle.info, list(_batches(drafts)), {}, progress)


def read_again(
    engine: Engine,
    ledger: Ledger,
    memory: SessionMemory | None,
    batches: Sequence[Sequence[Draft]],
    state: Mapping[str, Tensor],
    progress: Progress | None = None,
) -> None:
    """Read turns and commit them, batch by batch.

    Args:
        ledger: of the stored session they go to.
        memory: that of the session; None: it is empty.
        state: tensors to keep with each commit besides the memory's own.
        progress: called with (tokens read, tokens to read).

    Raises:
        TurnTooLargeError: the system turn is above max_init.
    """
    total, done = sum(len(draft.ids) for batch in batches for draft in batch), 0
    for batch in batches:
        if memory is None:
            memory = _memory_for(engine, ledger, batch[0])
        segments = [Segment(draft.ids, draft.spans) for draft in batch]
        engine.read(memory, segments, _shifted(progress, done, total))
        ledger.commit(batch, memory, state)
        done += sum(len(draft.ids) for draft in batch)


def draft_of(
    record: TurnRecord,
    ids: Sequence[int] | None = None,
    spans: Sequence[ReadSpan] | None = None,
) -> Draft:
    """A stored turn to read again: by its recorded ids and spans, or by others."""
    if ids is None or spans is None:
        ids, spans = record.ids, [ReadSpan(*span) for span in record.spans]
    return Draft(record.role, record.text, ids, spans, record.extra, record.created_at)


def _replay(
    engine: Engine,
    store: Store,
    handle: SessionHandle,
    info: SessionInfo,
    batches: Sequence[Sequence[Draft]],
    state: Mapping[str, Tensor],
    progress: Progress | None,
) -> None:
    """Read the batches into a hidden session and publish it as that of `handle`."""
    staged = store.stage(handle, info)
    try:
        read_again(engine, Ledger(staged), None, batches, state, progress)
        store.publish(handle, staged)
    finally:
        staged.close()


def _memory_for(engine: Engine, ledger: Ledger, first: Draft) -> SessionMemory:
    assert ledger.handle is not None
    id = ledger.handle.info.id
    n_init = initial_tokens(engine.config, id, first.role, len(first.ids))
    memory = engine.new_memory(n_init, journal=True)
    memory.attach(ledger.handle)
    return memory


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
        yield draft_of(record, ids, spans)
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
