"""`Session`: one conversation, resumable by its id."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from longmem.async_reply import AsyncReplyStream, Underway
from longmem.conversation import Conversation
from longmem.decoding import Extensions
from longmem.errors import InputError, SessionClosedError
from longmem.history import as_turn
from longmem.ledger import Draft
from longmem.opening import open_session
from longmem.reply_stream import ReplyStream
from longmem.sampling import Sampling
from longmem.tier_stats import tier_stats
from longmem.turn_input import TurnLike, as_pairs
from longmem.types import Reply, SessionStats, Turn

if TYPE_CHECKING:
    from transformers import LogitsProcessorList, StoppingCriteriaList

    from longmem.engine import Engine, Progress
    from longmem.store import Store


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
        self._closed = False
        self._underway = Underway()
        opened = open_session(
            engine, id, store, owner, metadata or {}, rebuild=rebuild, progress=progress
        )
        self._conversation = Conversation(engine, id, opened)
        try:
            self.begin(system)
        except BaseException:
            self.close()
            if opened.created and store is not None:
                store.delete(id)
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
        turns = as_pairs(role_or_turns, text)
        conversation = self._conversation
        for role, content in turns:
            conversation.check(role, content)
        self._check_open()
        if not turns:
            return []
        with conversation.transaction() as transaction:
            segments, previous = [], conversation.ledger.last_role
            for role, content in turns:
                segments.append(conversation.segment(role, content, previous))
                previous = role
            memory = conversation.memory_for(turns[0][0], len(segments[0].ids))
            self.engine.read(memory, segments, progress)
            drafts = [
                Draft(role, content, segment.ids, segment.spans)
                for (role, content), segment in zip(turns, segments, strict=True)
            ]
            return [as_turn(record) for record in transaction.commit(drafts)]

    def ask(
        self,
        text: str,
        *,
        role: str = "user",
        commit: bool = True,
        sampling: Sampling | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        **options: Any,
    ) -> Reply:
        """Read a turn and reply to it.

        Args:
            text: what is said.
            role: "user", or "tool" for the result of a tool call.
            commit: False answers from memory and stores nothing, neither turn nor reply.
            sampling: how to decode; default greedy.
            logits_processor, stopping_criteria: transformers' own lists, to steer and end the reply;
                they see the local window's and the reply's ids. They run in the middle of a pass,
                so they cannot use the engine themselves: that raises `SessionError`.
            options: fields of `Sampling` by name (``max_new_tokens=64``, ``temperature=0.7`` ...).

        Raises:
            InputError: the turn is refused.
            ConfigError: a sampling option is out of range.
            SessionInUseError: another exchange of this session is under way.
            StoreError: the exchange could not be made durable; the session is as it was before.
        """
        stream = self.stream(
            text,
            role=role,
            commit=commit,
            sampling=sampling,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            **options,
        )
        return stream.finish()

    def stream(
        self,
        text: str,
        *,
        role: str = "user",
        commit: bool = True,
        sampling: Sampling | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        **options: Any,
    ) -> ReplyStream:
        """As `ask`, but returns the reply's text piece by piece while it is decoded."""
        self._conversation.check(role, text)
        self._check_open()
        if role not in ("user", "tool"):
            raise InputError(
                f'a reply follows a "user" or "tool" turn, not {role!r}; use add for it'
            )
        chosen = (sampling or Sampling()).replace(**options)
        extensions = Extensions(logits_processor, stopping_criteria)
        return ReplyStream(self._conversation, (role, text), chosen, extensions, commit)

    def turns(self, start: int = 0, stop: int | None = None) -> list[Turn]:
        """The committed turns ``start <= index < stop``, oldest first."""
        self._check_open()
        return [as_turn(record) for record in self._conversation.ledger.history.turns(start, stop)]

    def stats(self) -> SessionStats:
        """Tokens, blocks and bytes of this session."""
        self._check_open()
        memory, last, handle = (
            self._conversation.memory,
            self._conversation.ledger.last,
            self._conversation.ledger.handle,
        )
        layers = memory.full_layers if memory else []
        return SessionStats(
            tokens=self._conversation.ledger.n_tokens,
            turns=self._conversation.ledger.n_turns,
            blocks=memory.n_blocks if memory else 0,
            window=memory.window_tokens if memory else 0,
            bytes_device=memory.bytes_device if memory else 0,
            bytes_host=sum(layer.tier.bytes for layer in layers),
            bytes_disk=handle.info.bytes if handle else 0,
            last_turn_at=last.created_at if last else None,
            bytes_index=memory.bytes_index if memory else 0,
            tiers=tier_stats(memory, handle.info.bytes if handle else 0),
        )

    def close(self) -> None:
        """Let go of the session; what was committed stays, a reply under way is cancelled. Closing
        twice is fine."""
        self._closed = True
        if self._conversation.running is not None:
            self._conversation.running.cancel()
        if self._conversation.ledger.handle is not None:
            self._conversation.ledger.handle.close()
        self._conversation.memory = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aadd(
        self,
        role_or_turns: str | Sequence[TurnLike],
        text: str | None = None,
        *,
        progress: Progress | None = None,
    ) -> list[Turn]:
        """`add` in a worker thread, where `progress` is called, too."""
        await self._underway.settled()
        call = partial(self.add, role_or_turns, text, progress=progress)
        return await self.engine.workers.run(call)

    async def aask(self, text: str, **options: Any) -> Reply:
        """`ask` in a worker thread; if the task is cancelled, so is the exchange."""
        return await self.astream(text, **options).finish()

    def astream(self, text: str, **options: Any) -> AsyncReplyStream:
        """`stream` in worker threads; breaking off or cancelling the task drops the exchange."""
        return AsyncReplyStream(self.stream(text, **options), self._underway)

    async def aclose(self) -> None:
        """`close` in a worker thread."""
        await self._underway.settled()
        await asyncio.to_thread(self.close)

    @property
    def last_role(self) -> str | None:
        """Role of the last committed turn; None for an empty session."""
        return self._conversation.ledger.last_role

    @property
    def owner(self) -> str | None:
        """Whom it belongs to in its store."""
        handle = self._conversation.ledger.handle
        return handle.info.owner if handle else None

    def begin(self, system: str | None) -> None:
        """Pin the system prompt of a new session; check that of an old one.

        Raises:
            InputError: it was begun with another.
        """
        if system is None:
            return
        if self._conversation.ledger.n_turns == 0:
            self.add("system", system)
            return
        first = self._conversation.ledger.history.turns(0, 1)[0]
        if first.role != "system" or first.text != system:
            raise InputError(
                f"session {self.id!r} was begun with another system prompt, which stays pinned; "
                "resume it without system=, or begin a new session"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosedError(f"session {self.id!r} is closed; open it again to go on")
