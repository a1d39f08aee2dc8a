"""What a session has said so far, and the commit that makes more of it durable."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from longmem.errors import SessionError
from longmem.history import History, ListHistory
from longmem.memory import ReadSpan, SessionMemory
from longmem.merging import Merging
from longmem.store import Commit, Record, SessionHandle, Span, TurnRecord


@dataclass(frozen=True)
class Draft:
    """A turn that was read into memory but is not yet part of the session.

    `created_at` is set for turns that are read again; new ones get the time of their commit.
    """

    role: str
    text: str
    ids: Sequence[int]
    spans: Sequence[ReadSpan]
    extra: Mapping[str, Any] = field(default_factory=dict)
    created_at: float | None = None


class Ledger:
    """Counts and commits turns; `handle` is None for a session that lives in memory only."""

    def __init__(self, handle: SessionHandle | None) -> None:
        self.handle = handle
        self.merging = Merging(handle)
        self._list = ListHistory()
        info = handle.info if handle is not None else None
        self.head = info.head if info else 0
        self.n_turns = info.n_turns if info else 0
        self.n_tokens = info.n_tokens if info else 0
        last = self.history.turns(self.n_turns - 1) if self.n_turns else []
        self.last: TurnRecord | None = last[0] if last else None
        self.settled = True
        """False once a commit broke off when it was durable, or may have been: the memory does not know
        of it and must not be read into again."""

    @property
    def history(self) -> History:
        """Where committed turns are read."""
        return self._list if self.handle is None else self.handle

    @property
    def last_role(self) -> str | None:
        """Role of the last committed turn."""
        return self.last.role if self.last else None

    def commit(
        self,
        drafts: Sequence[Draft],
        memory: SessionMemory,
        state: Mapping[str, Tensor],
        records: Sequence[Record] = (),
    ) -> list[TurnRecord]:
        """Make the drafts, which `memory` has read, part of the session; all of them or none.

        Args:
            state: tensors to keep with the snapshot besides the memory's own.
            records: documents that become durable with the turns; a session without a store has no
                place for them.

        Raises:
            SessionError: `memory` has not read exactly the drafts; nothing was committed.
            StoreError: nothing was committed; the memory has to be rewound.
        """
        turns = self._records(drafts)
        stop = self.n_tokens + sum(len(turn.ids) for turn in turns)
        if memory.n_tokens != stop:
            raise SessionError(
                f"the turns to commit end at token {stop:,}, but {memory.n_tokens:,} were read; "
                "nothing was committed"
            )
        if self.handle is None:
            self.settled = False
            self._list.extend(turns)
        else:
            made = memory.export()
            commit = Commit(
                parent=self.head,
                turns=turns,
                start=self.n_tokens,
                stop=stop,
                kv=made.kv,
                blocks=made.blocks,
                state={**made.state, **state},
                records=records,
            )
            self.settled = False
            try:
                self.handle.commit(commit)
            except BaseException:
                if self.handle.info.head == self.head:
                    self.settled = True
                    raise
                self._advance(turns, stop, memory)  # interrupted when it was durable already
                raise
        self._advance(turns, stop, memory)
        self.merging.committed(memory)
        return turns

    def _advance(self, turns: list[TurnRecord], stop: int, memory: SessionMemory) -> None:
        """The turns are part of the session now."""
        self.head = self.head + 1 if self.handle is None else self.handle.info.head
        self.n_turns += len(turns)
        self.n_tokens, self.last = stop, turns[-1]
        memory.exported()
        self.settled = True

    def _records(self, drafts: Sequence[Draft]) -> list[TurnRecord]:
        now, start, records = time.time(), self.n_tokens, []
        for i, draft in enumerate(drafts):
            records.append(
                TurnRecord(
                    index=self.n_turns + i,
                    role=draft.role,
                    text=draft.text,
                    ids=tuple(draft.ids),
                    start=start,
                    spans=tuple(_recorded(span) for span in draft.spans),
                    created_at=now if draft.created_at is None else draft.created_at,
                    extra=draft.extra,
                )
            )
            start += len(draft.ids)
        return records


def _recorded(span: ReadSpan) -> Span:
    """A span as it is stored."""
    if span.layers is None:
        return (span.tokens, span.voters)
    return (span.tokens, span.voters, span.layers)
