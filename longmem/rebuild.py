"""Read a stored session again: after a change of model, of memory layout, or of damaged files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from longmem.feeding import Segment
from longmem.ledger import Draft, Ledger
from longmem.memory import ReadSpan
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
    template is another one. Until the end the old data stays as it is.
    """
    same_tokens = all(
        handle.info.fingerprint.get(part) == info.fingerprint.get(part)
        for part in ("tokenizer", "template", "keep_reasoning")
    )
    records = handle.turns()
    staged = store.stage(handle, info)
    try:
        _replay(engine, staged, records, same_tokens, progress)
        store.publish(handle, staged)
    finally:
        staged.close()


def _replay(
    engine: Engine,
    staged: SessionHandle,
    records: Sequence[TurnRecord],
    same_tokens: bool,
    progress: Progress | None,
) -> None:
    drafts = list(_drafts(engine, records, same_tokens))
    ledger = Ledger(staged)
    n_init = engine.config.n_init
    if records[0].role == "system":
        n_init = max(n_init, len(drafts[0].ids))
    memory = engine.new_memory(n_init, journal=True)
    memory.attach(staged.read_kv)
    total, done = sum(len(draft.ids) for draft in drafts), 0
    for batch in _batches(drafts):
        engine.read(memory, [Segment(draft.ids, draft.spans) for draft in batch])
        ledger.commit(batch, memory, {})
        done += sum(len(draft.ids) for draft in batch)
        if progress is not None:
            progress(done, total)


def _drafts(engine: Engine, records: Sequence[TurnRecord], same_tokens: bool) -> Iterator[Draft]:
    previous = None
    for record in records:
        if same_tokens:
            ids: Sequence[int] = record.ids
            spans = [ReadSpan(tokens, voters) for tokens, voters in record.spans]
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
