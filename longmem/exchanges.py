"""What a session does turn by turn: read, reply, tell what it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from longmem.async_reply import Underway
from longmem.conversation import Conversation
from longmem.decoding import Extensions
from longmem.errors import InputError, SessionClosedError, SessionError
from longmem.history import as_turn
from longmem.keeping import Finish, Keeping, MakeRecords, check_extra
from longmem.ledger import Draft
from longmem.reply_stream import ReplyStream
from longmem.sampling import Sampling
from longmem.tier_stats import tier_stats
from longmem.turn_input import TurnLike, as_turns, asked_turns, check_replied_to
from longmem.types import Reply, SessionStats, Turn

if TYPE_CHECKING:
    from transformers import LogitsProcessorList, StoppingCriteriaList

    from longmem.engine import Engine, Progress
    from longmem.opening import Opened
    from longmem.store import Store


class Exchanges:
    """The present of a session; `longmem.Session` is made of it."""

    def _begin(self, engine: Engine, id: str, store: Store | None, opened: Opened) -> None:
        """Stand where `opened` stands."""
        self.engine = engine
        self.id = id
        self._store = store
        self._closed = False
        self._underway = Underway()
        self._conversation = Conversation(engine, id, opened)

    def add(
        self,
        role_or_turns: str | Sequence[TurnLike],
        text: str | None = None,
        *,
        progress: Progress | None = None,
    ) -> list[Turn]:
        """Read turns without replying: ``add("user", "Hi")`` or ``add([turn, ...])``; one commit.

        Args:
            role_or_turns: a role, with `text`; or the turns. A `Turn`, and a mapping with "extra",
                bring the details that are kept with it.
            text: the turn's text.
            progress: called with (tokens read, tokens to read).

        Raises:
            InputError: a turn is refused; none of them was read.
        """
        turns = as_turns(role_or_turns, text)
        conversation = self._conversation
        for turn in turns:
            conversation.check(turn)
        self._check_open()
        if not turns:
            return []
        with conversation.transaction() as transaction:
            segments = conversation.segments(turns)
            memory = conversation.memory_for(turns[0].role, len(segments[0].ids))
            self.engine.read(memory, segments, progress)
            drafts = [
                Draft(turn.role, turn.text, segment.ids, segment.spans, turn.extra)
                for turn, segment in zip(turns, segments, strict=True)
            ]
            return [as_turn(record) for record in transaction.commit(drafts)]

    def ask(
        self,
        turns: str | Sequence[TurnLike],
        *,
        role: str = "user",
        commit: bool = True,
        sampling: Sampling | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        extra: Mapping[str, Any] | None = None,
        finish: Finish | None = None,
        records: MakeRecords | None = None,
        **options: Any,
    ) -> Reply:
        """Read new turns and reply to the last of them; one commit.

        Args:
            turns: what is said; or several turns as `add` takes them, of which the last is a user's
                or a tool's.
            role: of a single text: "user", or "tool" for the result of a tool call.
            commit: False answers from memory and stores nothing, neither turns nor reply.
            sampling: how to decode; default greedy.
            logits_processor, stopping_criteria: transformers' own lists, to steer and end the reply;
                they see the local window's and the reply's ids. They run in the middle of a pass,
                so they cannot use the engine themselves: that raises `SessionError`.
            extra: JSON-able details, kept with the reply's turn (`Turn.extra`).
            finish: called with the whole reply before the commit; what it gives is kept with the
                reply's turn, too, and wins.
            records: called with the whole reply before the commit; the `longmem.store.Record`s it
                gives become durable with the exchange, and go when the exchange goes.
            options: fields of `Sampling` by name (``max_new_tokens=64``, ``temperature=0.7`` ...).

        `finish` and `records` are called once, in this order, on the thread that commits; they may
        read the session. What they raise drops the exchange: the session is as it was before.

        Raises:
            InputError: a turn is refused, or `extra`, `finish` or `records` without commit.
            ConfigError: a sampling option is out of range.
            SessionInUseError: another exchange of this session is under way.
            StoreError: the exchange could not be made durable; the session is as it was before.
        """
        stream = self.stream(
            turns,
            role=role,
            commit=commit,
            sampling=sampling,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            extra=extra,
            finish=finish,
            records=records,
            **options,
        )
        return stream.finish()

    def stream(
        self,
        turns: str | Sequence[TurnLike],
        *,
        role: str = "user",
        commit: bool = True,
        sampling: Sampling | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        extra: Mapping[str, Any] | None = None,
        finish: Finish | None = None,
        records: MakeRecords | None = None,
        **options: Any,
    ) -> ReplyStream:
        """As `ask`, but returns the reply's text piece by piece while it is decoded. The thread that
        takes the last piece commits."""
        asked = asked_turns(turns, role)
        for turn in asked:
            self._conversation.check(turn)
        keeping = Keeping(check_extra(extra or {}), finish, records)
        self._check_keeping(keeping, commit)
        self._check_open()
        check_replied_to(asked)
        chosen = (sampling or Sampling()).replace(**options)
        extensions = Extensions(logits_processor, stopping_criteria)
        kept = keeping if commit else None
        return ReplyStream(self._conversation, asked, chosen, extensions, kept)

    def turns(self, start: int = 0, stop: int | None = None) -> list[Turn]:
        """The committed turns ``start <= index < stop``, oldest first."""
        self._check_open()
        return [as_turn(record) for record in self._conversation.ledger.history.turns(start, stop)]

    def stats(self) -> SessionStats:
        """Tokens, blocks and bytes of this session."""
        self._check_open()
        memory, ledger = self._conversation.memory, self._conversation.ledger
        on_disk = ledger.handle.info.bytes if ledger.handle else 0
        layers = memory.full_layers if memory else []
        return SessionStats(
            tokens=ledger.n_tokens,
            turns=ledger.n_turns,
            blocks=memory.n_blocks if memory else 0,
            window=memory.window_tokens if memory else 0,
            bytes_device=memory.bytes_device if memory else 0,
            bytes_host=sum(layer.tier.bytes for layer in layers),
            bytes_disk=on_disk,
            last_turn_at=ledger.last.created_at if ledger.last else None,
            bytes_index=memory.bytes_index if memory else 0,
            tiers=tier_stats(memory, on_disk),
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

    @property
    def closed(self) -> bool:
        """Whether it was closed; open it again to go on."""
        return self._closed

    @property
    def n_turns(self) -> int:
        """How many turns are committed."""
        return self._conversation.ledger.n_turns

    @property
    def last_role(self) -> str | None:
        """Role of the last committed turn; None for an empty session."""
        return self._conversation.ledger.last_role

    @property
    def owner(self) -> str | None:
        """Whom it belongs to in its store."""
        handle = self._conversation.ledger.handle
        return handle.info.owner if handle else None

    def _check_keeping(self, keeping: Keeping, commit: bool) -> None:
        if keeping.wanted and not commit:
            raise InputError(
                "extra, finish and records are kept with a committed reply; leave them out with "
                "commit=False"
            )
        if keeping.records is not None and self._store is None:
            raise SessionError(
                f"session {self.id!r} has no store that could keep records; open it with "
                "store=InMemoryStore() at least, or leave records out"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosedError(f"session {self.id!r} is closed; open it again to go on")
