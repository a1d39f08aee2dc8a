"""The inside of a session: what it has read, and the transaction every exchange runs in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longmem.decoding import Decoding, Extensions
from longmem.errors import (
    ChatFormatError,
    ConfigError,
    InputError,
    SessionClosedError,
    SessionError,
    SessionInUseError,
    TurnTooLargeError,
)
from longmem.feeding import Segment
from longmem.fit import initial_tokens
from longmem.ledger import Draft
from longmem.memory import Mark, SessionMemory
from longmem.sampling import Sampling, load_generator, new_generator, save_generator
from longmem.store import Record, SessionHandle, TurnRecord
from longmem.strand import StrandInPass
from longmem.types import Turn

if TYPE_CHECKING:
    from longmem.engine import Engine
    from longmem.opening import Opened
    from longmem.reply_stream import ReplyStream


class Conversation:
    """Memory, turns and random numbers of one session.

    Args:
        engine: the model that reads and replies.
        id: the session's id, for messages.
        opened: what was found in the store.
    """

    def __init__(self, engine: Engine, id: str, opened: Opened) -> None:
        self.engine = engine
        self.id = id
        self.ledger = opened.ledger
        self._memory: SessionMemory | None = opened.memory
        self.closed = False
        """Whether the memory was let go of, for good."""
        self.generator = _generator(engine, opened)
        self.running: ReplyStream | None = None
        """The reply under way."""
        self._busy = threading.Lock()
        self._broken = False

    @property
    def memory(self) -> SessionMemory | None:
        """None before the first turn, which decides how many initial tokens there are. `Session.close`
        sets it to None for good, at any time."""
        return self._memory

    @memory.setter
    def memory(self, memory: SessionMemory | None) -> None:
        self.closed = memory is None  # first: `_forget` looks after it has put a memory back
        self._memory = memory

    @contextmanager
    def alone(self, stream: ReplyStream | None = None) -> Iterator[None]:
        """Within, nobody else reads into the memory or changes the past.

        Args:
            stream: the reply it is for; `Session.close` cancels it.

        Raises:
            SessionInUseError: somebody does.
            SessionError: an earlier exchange could not be undone.
        """
        if not self._busy.acquire(blocking=False):
            raise SessionInUseError(
                f"session {self.id!r} is in the middle of an exchange; let its reply end, or stop or "
                "cancel it, before the next"
            )
        try:
            if self._broken:
                raise SessionError(
                    f"session {self.id!r}: an exchange failed and could not be undone in memory; "
                    "close the session and open it again, what was committed is safe"
                )
            self.running = stream
            yield
        finally:
            self.running = None
            self._busy.release()

    @contextmanager
    def transaction(self, stream: ReplyStream | None = None) -> Iterator[Transaction]:
        """Everything read inside is either committed or forgotten; one at a time. See `alone`."""
        with self.alone(stream):
            before, rng = self.memory, save_generator(self.generator)
            mark = before.mark() if before is not None else None
            transaction = Transaction(self)
            try:
                yield transaction
            except StrandInPass:  # memory is being read into: it cannot be undone from here
                self._broken = True
                raise
            finally:
                if not (transaction.committed or self._broken):
                    self._forget(before, mark, rng)

    def stand(self, opened: Opened) -> None:
        """Go on from what is in the store now. To be called within `alone`."""
        self.ledger, self._memory = opened.ledger, opened.memory
        self.generator = _generator(self.engine, opened)
        self._broken = False
        if self.closed:
            self._memory = None

    @contextmanager
    def changing_past(self, handle: SessionHandle) -> Iterator[None]:
        """Within, the store goes elsewhere, and `stand` follows it. If only the store got there, the
        memory is of no use any more."""
        n_turns = handle.info.n_turns
        try:
            with self.ledger.merging.held():
                yield
        except BaseException:
            self._broken = self._broken or handle.info.n_turns != n_turns
            raise

    def _forget(self, before: SessionMemory | None, mark: Mark | None, rng: Tensor) -> None:
        """Bring memory and random numbers back to where a transaction began."""
        if not self.closed:
            self._broken = True
            self._memory = before
            if before is not None and mark is not None:
                before.rewind(mark)
            self.generator.set_state(rng)
            self._broken = False
        if self.closed:
            self._memory = None

    def check(self, turn: Turn) -> None:
        """Refuse bad input before anything is read.

        Raises:
            InputError: says what is wrong with it.
        """
        text = turn.text
        if turn.role != "system" or not turn.extra.get("tools"):  # tools alone are a prompt, too
            self.engine.chat.validate_text(text, turn.role)
        size, most = len(text.encode()), self.engine.config.max_turn_bytes
        if size > most:
            raise TurnTooLargeError(
                f"session {self.id!r}: a turn of {size:,} bytes is above max_turn_bytes = {most:,}; "
                "split it into several turns, or raise MemoryConfig.max_turn_bytes"
            )

    def segments(self, turns: Sequence[Turn]) -> list[Segment]:
        """The ids of new turns, with the spans they will be read with."""
        previous, made = self.ledger.last_role, []
        for turn in turns:
            made.append(self._segment(turn, previous))
            previous = turn.role
        return made

    def _segment(self, turn: Turn, previous: str | None) -> Segment:
        try:
            ids = self.engine.chat.turn_ids(
                turn.role, turn.text, previous=previous, extra=turn.extra
            )
        except ChatFormatError as error:
            if turn.role != "system" or previous is None:
                raise
            raise InputError(
                f"session {self.id!r}: a system turn has to be the first: {error}"
            ) from error
        return Segment(ids, self.engine.spans(len(ids)))

    def memory_for(self, role: str, n_tokens: int) -> SessionMemory:
        """The memory to read a turn into; a new one pins a system turn of `n_tokens` tokens."""
        if self.closed:
            raise self.closed_meanwhile()
        memory = self._memory
        if memory is None:
            n_init = initial_tokens(self.engine.config, self.id, role, n_tokens)
            handle = self.ledger.handle
            memory = self.engine.new_memory(n_init, journal=handle is not None)
            if handle is not None:
                memory.attach(handle)
            self._memory = memory
        return memory

    def closed_meanwhile(self) -> SessionClosedError:
        """What an exchange raises that another thread took the session from."""
        return SessionClosedError(
            f"session {self.id!r} was closed while it read; nothing was committed"
        )

    def recent_ids(self) -> list[int]:
        """The ids in the local window, which logits processors see."""
        n = self.ledger.n_tokens
        start = max(0, n - self.engine.config.n_local)
        if start == n:
            return []
        first = self.ledger.history.turns_at([start])[0]
        ids = [i for turn in self.ledger.history.turns(first.index) for i in turn.ids]
        return ids[start - first.start :]


def _generator(engine: Engine, opened: Opened) -> torch.Generator:
    """The random numbers of a session that goes on, or new ones."""
    if opened.rng is not None:
        with suppress(ConfigError):  # written on another type of device: a new seed will do
            return load_generator(engine.device, opened.rng)
    return new_generator(engine.device)


class Transaction:
    """What a block of code reads into a conversation, and may commit, once."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.committed = False

    @property
    def memory(self) -> SessionMemory:
        """The memory, after the first turn was prepared.

        Raises:
            SessionClosedError: another thread closed the session.
        """
        memory = self.conversation.memory
        if memory is None or self.conversation.closed:
            raise self.conversation.closed_meanwhile()
        return memory

    def decoding(
        self,
        turns: Sequence[Turn],
        sampling: Sampling,
        extensions: Extensions,
        stopping: Callable[[], bool],
    ) -> Decoding:
        """A reply to the last of these turns; `stopping` is asked between tokens whether to end it
        there."""
        conversation = self.conversation
        segments = conversation.segments(turns)
        recent = conversation.recent_ids()
        memory = conversation.memory_for(turns[0].role, len(segments[0].ids))
        if sampling.seed is not None:
            conversation.generator.manual_seed(sampling.seed)
        return Decoding(
            conversation.engine,
            memory,
            turns,
            segments,
            sampling,
            extensions,
            conversation.generator,
            recent,
            stopping,
        )

    def commit(self, drafts: Sequence[Draft], records: Sequence[Record] = ()) -> list[TurnRecord]:
        """Make the drafts durable, and the records with them.

        Raises:
            SessionClosedError: another thread closed the session; nothing was committed.
            StoreError: nothing was committed.
        """
        state = {"rng": save_generator(self.conversation.generator)}
        ledger = self.conversation.ledger
        head = ledger.head
        try:
            return ledger.commit(drafts, self.memory, state, records)
        finally:
            self.committed = ledger.head != head
            if not ledger.settled:
                self.conversation._broken = True
