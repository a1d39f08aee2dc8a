"""`Session`: one conversation, resumable by its id."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from longmem.decoding import Decoding
from longmem.engine import Segment
from longmem.errors import (
    ChatFormatError,
    InputError,
    SessionClosedError,
    SessionInUseError,
    TurnTooLargeError,
)
from longmem.history import History, as_turn
from longmem.ledger import Draft, Ledger
from longmem.memory import SessionMemory
from longmem.opening import Opened, open_session
from longmem.reply_stream import ReplyStream
from longmem.sampling import Sampling, new_generator
from longmem.store import TurnRecord
from longmem.types import Reply, SessionStats, Turn

if TYPE_CHECKING:
    from longmem.engine import Engine, Progress
    from longmem.store import Store

TurnLike = Turn | tuple[str, str] | Mapping[str, Any]
"""A `Turn`, a (role, text) pair, or a mapping with "role" and "content" (or "text")."""


class Session:
    """One conversation: turns in, replies out. Make it with `Engine.session`.

    Args:
        engine: the model that reads and replies.
        id: name of the conversation in its store: at most 256 characters, no path separators.
        store: where it lives; without one it lives as long as this object.
        system: system prompt, pinned as initial tokens: a part of the working set for ever.
        owner: whom it belongs to; kept with the session, checked when it is resumed.
        metadata: JSON-able details, kept with a new session.
        rebuild: read the stored turns again, for instance under another model.
        progress: called with (tokens read, tokens to read) during a rebuild.

    Raises:
        InputError: the id or the system prompt is refused.
        FingerprintMismatchError: it was written under another model or memory layout.
        SessionInUseError: it is open in this process.
        StoreError: the store cannot be read.
    """

    def __init__(
        self,
        engine: Engine,
        id: str,
        *,
        store: Store | None = None,
        system: str | None = None,
        owner: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        rebuild: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.engine = engine
        self.id = id
        self._busy = threading.Lock()
        self._closed = False
        self._generator = new_generator(engine.device)
        opened: Opened = open_session(
            engine, id, store, owner, metadata or {}, rebuild=rebuild, progress=progress
        )
        self._ledger: Ledger = opened.ledger
        self._memory: SessionMemory | None = opened.memory
        if opened.rng is not None and opened.rng.numel() == self._generator.get_state().numel():
            self._generator.set_state(opened.rng)  # of another device type: a new seed will do
        try:
            self._begin(system)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add(
        self,
        role_or_turns: str | Sequence[TurnLike],
        text: str | None = None,
        *,
        progress: Progress | None = None,
    ) -> list[Turn]:
        """Read turns without replying: ``add("user", "Hi")`` or ``add([turn, ...])``; one commit.

        Args:
            role_or_turns: a role, with `text`; or the turns.
            text: the turn's text.
            progress: called with (tokens read, tokens to read).

        Raises:
            InputError: a turn is refused; none of them was read.
        """
        turns = _as_pairs(role_or_turns, text)
        for role, content in turns:
            self._check(role, content)
        if not turns:
            return []
        with self.transaction() as transaction:
            segments, previous = [], self.last_role
            for role, content in turns:
                segments.append(self._segment(role, content, previous))
                previous = role
            memory = self._memory_for(turns[0][0], len(segments[0].ids))
            self.engine.read(memory, segments, progress)
            drafts = [
                Draft(role, content, s.ids, s.spans)
                for (role, content), s in zip(turns, segments, strict=True)
            ]
            return [as_turn(record) for record in transaction.commit(drafts)]

    def ask(
        self,
        text: str,
        *,
        role: str = "user",
        commit: bool = True,
        sampling: Sampling | None = None,
        **options: Any,
    ) -> Reply:
        """Read a turn and reply to it.

        Args:
            text: what is said.
            role: "user", or "tool" for the result of a tool call.
            commit: False answers from memory and stores nothing, neither turn nor reply.
            sampling: how to decode; default greedy.
            options: fields of `Sampling` by name (``max_new_tokens=64``, ``temperature=0.7`` ...).

        Raises:
            InputError: the turn is refused.
            ConfigError: a sampling option is out of range.
            SessionInUseError: another exchange of this session is under way.
            StoreError: the exchange could not be made durable; the session is as it was before.
        """
        stream = self.stream(text, role=role, commit=commit, sampling=sampling, **options)
        for _ in stream:
            pass
        return stream.reply

    def stream(
        self,
        text: str,
        *,
        role: str = "user",
        commit: bool = True,
        sampling: Sampling | None = None,
        **options: Any,
    ) -> ReplyStream:
        """As `ask`, but returns the reply's text piece by piece while it is decoded."""
        self._check(role, text)
        self._check_open()
        if role not in ("user", "tool"):
            raise InputError(f'a reply follows a "user" or "tool" turn, not {role!r}; use add for it')
        chosen = Sampling(**{**_fields(sampling), **options})
        return ReplyStream(self, role, text, chosen, commit)

    def turns(self, start: int = 0, stop: int | None = None) -> list[Turn]:
        """The committed turns ``start <= index < stop``, oldest first."""
        self._check_open()
        return [as_turn(record) for record in self._ledger.history.turns(start, stop)]

    def stats(self) -> SessionStats:
        """Tokens, blocks and bytes of this session."""
        self._check_open()
        memory, last, handle = self._memory, self._ledger.last, self._ledger.handle
        layers = memory.full_layers if memory else []
        return SessionStats(
            tokens=self._ledger.n_tokens,
            turns=self._ledger.n_turns,
            blocks=memory.n_blocks if memory else 0,
            window=memory.window_tokens if memory else 0,
            bytes_device=memory.bytes_device if memory else 0,
            bytes_host=sum(layer.tier.bytes for layer in layers),
            bytes_disk=handle.info.bytes if handle else 0,
            last_turn_at=last.created_at if last else None,
        )

    def close(self) -> None:
        """Let go of the session; what was committed stays. Closing twice is fine."""
        self._closed = True
        if self._ledger.handle is not None:
            self._ledger.handle.close()
        self._memory = None

    async def aadd(
        self, role_or_turns: str | Sequence[TurnLike], text: str | None = None
    ) -> list[Turn]:
        """`add` in a worker thread."""
        return await asyncio.to_thread(self.add, role_or_turns, text)

    async def aask(self, text: str, **options: Any) -> Reply:
        """`ask` in a worker thread; if the task is cancelled, so is the exchange."""
        stream = self.stream(text, **options)
        async for _ in _in_thread(stream):
            pass
        return stream.reply

    async def astream(self, text: str, **options: Any) -> AsyncIterator[str]:
        """`stream` in a worker thread; breaking off or cancelling the task drops the exchange."""
        stream = self.stream(text, **options)
        async for piece in _in_thread(stream):
            yield piece

    async def aclose(self) -> None:
        """`close` in a worker thread."""
        await asyncio.to_thread(self.close)

    @property
    def last_role(self) -> str | None:
        """Role of the last committed turn; None for an empty session."""
        return self._ledger.last_role

    def _begin(self, system: str | None) -> None:
        """Pin the system prompt of a new session; check that of an old one."""
        if system is None:
            return
        if self._ledger.n_turns == 0:
            self.add("system", system)
            return
        first = self._ledger.history.turns(0, 1)[0]
        if first.role != "system" or first.text != system:
            raise InputError(
                f"session {self.id!r} was begun with another system prompt, which stays pinned; "
                "resume it without system=, or begin a new session"
            )

    def _check(self, role: str, text: str) -> None:
        """Refuse bad input before anything is read."""
        self.engine.chat.validate_text(text, role)
        size, most = len(text.encode()), self.engine.config.max_turn_bytes
        if size > most:
            raise TurnTooLargeError(
                f"session {self.id!r}: a turn of {size:,} bytes is above max_turn_bytes = {most:,}; "
                "split it into several turns, or raise MemoryConfig.max_turn_bytes"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosedError(f"session {self.id!r} is closed; open it again to go on")

    def _segment(self, role: str, text: str, previous: str | None) -> Segment:
        """The ids of one new turn, with the spans it will be read with."""
        if role == "system" and previous is not None and "system" in self.engine.chat.roles:
            try:
                ids = self.engine.chat.turn_ids(role, text, previous=previous)
            except ChatFormatError as error:
                raise InputError(
                    f"session {self.id!r}: a system turn has to be the first: {error}"
                ) from error
        else:
            ids = self.engine.chat.turn_ids(role, text, previous=previous)
        return Segment(ids, self.engine.spans(len(ids)))

    def _memory_for(self, role: str, n_tokens: int) -> SessionMemory:
        """The session's memory; a new one pins a first system turn of `n_tokens` tokens."""
        if self._memory is None:
            config, n_init = self.engine.config, self.engine.config.n_init
            if role == "system":
                if n_tokens > config.max_init:
                    raise TurnTooLargeError(
                        f"session {self.id!r}: the system turn has {n_tokens} tokens, above "
                        f"max_init = {config.max_init}; shorten it, or raise MemoryConfig.max_init"
                    )
                n_init = max(n_init, n_tokens)
            self._memory = self.engine.new_memory(n_init, journal=self._ledger.handle is not None)
            if self._ledger.handle is not None:
                self._memory.attach(self._ledger.handle.read_kv)
        return self._memory

    def _recent_ids(self) -> list[int]:
        """The ids in the local window, which logits processors see."""
        n = self._ledger.n_tokens
        start = max(0, n - self.engine.config.n_local)
        if start == n:
            return []
        first = self._ledger.history.turns_at([start])[0]
        turns = self._ledger.history.turns(first.index)
        ids = [i for turn in turns for i in turn.ids]
        return ids[start - first.start :]

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Everything read inside is either committed or forgotten; one at a time."""
        self._check_open()
        if not self._busy.acquire(blocking=False):
            raise SessionInUseError(
                f"session {self.id!r} is in the middle of an exchange; let its reply end, or stop or "
                "cancel it, before the next"
            )
        before = self._memory
        mark = before.mark() if before is not None else None
        rng = self._generator.get_state()
        transaction = Transaction(self)
        try:
            yield transaction
        finally:
            if not transaction.committed:
                self._memory = before
                if before is not None and mark is not None:
                    before.rewind(mark)
                self._generator.set_state(rng)
            self._busy.release()


class Transaction:
    """What a block of code reads into a session, and may commit, once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.committed = False

    @property
    def memory(self) -> SessionMemory:
        """The session's memory, after the first turn was prepared."""
        assert self._session._memory is not None
        return self._session._memory

    @property
    def history(self) -> History:
        """The committed turns."""
        return self._session._ledger.history

    def decoding(self, role: str, text: str, sampling: Sampling) -> Decoding:
        """A reply to a turn."""
        session = self._session
        user = session._segment(role, text, session.last_role)
        recent = session._recent_ids()
        memory = session._memory_for(role, len(user.ids))
        if sampling.seed is not None:
            session._generator.manual_seed(sampling.seed)
        return Decoding(
            session.engine, memory, role, text, user, sampling, session._generator, recent
        )

    def commit(self, drafts: Sequence[Draft]) -> list[TurnRecord]:
        """Make the drafts durable."""
        state = {"rng": self._session._generator.get_state()}
        turns = self._session._ledger.commit(drafts, self.memory, state)
        self.committed = True
        return turns


def _fields(sampling: Sampling | None) -> dict[str, Any]:
    if sampling is None:
        return {}
    return {name: getattr(sampling, name) for name in sampling.__dataclass_fields__}


def _as_pairs(role_or_turns: str | Sequence[TurnLike], text: str | None) -> list[tuple[str, str]]:
    if isinstance(role_or_turns, str):
        if text is None:
            raise InputError('add(role, text) needs a text, as in add("user", "Hello")')
        return [(role_or_turns, text)]
    return [_as_pair(turn) for turn in role_or_turns]


def _as_pair(turn: TurnLike) -> tuple[str, str]:
    if isinstance(turn, Turn):
        return turn.role, turn.text
    if isinstance(turn, Mapping):
        role, text = turn.get("role"), turn.get("content", turn.get("text"))
    else:
        role, text = turn
    if not isinstance(role, str) or not isinstance(text, str):
        raise InputError(f"a turn is a role and a text, not {turn!r}; give for instance ('user', 'Hi')")
    return role, text


async def _in_thread(stream: ReplyStream) -> AsyncIterator[str]:
    """Pull pieces in a worker thread; leaving early cancels the exchange."""
    try:
        while (piece := await asyncio.to_thread(stream.next_piece)) is not None:
            yield piece
    finally:
        await asyncio.shield(asyncio.to_thread(stream.cancel))
