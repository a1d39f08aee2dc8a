"""What a session does with its past: fork, roll back, forget, recall, erase."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from longmem.boundary import boundary, check_index, point_behind
from longmem.errors import InputError, SessionError
from longmem.exchanges import Exchanges
from longmem.forgetting import forget
from longmem.forking import fork_stored
from longmem.ledger import Ledger
from longmem.opening import Opened, resume
from longmem.recollecting import recollect
from longmem.sampling import save_generator
from longmem.types import Recollection

if TYPE_CHECKING:
    from torch import Tensor

    from longmem.engine import Progress
    from longmem.memory import SessionMemory
    from longmem.store import SessionHandle, Store

_MOST_CHARACTERS = 247
"""Of a session's id that go into the default id of its fork."""


class Timeline(Exchanges):
    """The past of a session; `longmem.Session` is made of it."""

    def boundary(self, turn: int) -> int:
        """The largest index <= `turn` at which a fork or a rollback may end; -1: before all turns.

        Raises:
            InputError: there is no such turn.
            SessionError: the session has no store.
        """
        return boundary(self._stored("has no boundaries")[1], turn)

    def fork(
        self,
        id: str | None = None,
        *,
        at: int | None = None,
        owner: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Self:
        """Begin a new session with this one's first turns. The model does not run, and nothing is
        copied but rows; the state is bit-equal to this session's at that turn, random numbers
        included. From then on both go on by themselves. May be called while a reply is under way:
        what is committed is forked.

        Args:
            id: of the new session; default this one's, "~" and 8 hex digits.
            at: index of the last turn it takes over, which ends an exchange (see `boundary`);
                default the last one. -1 takes none.
            owner: default this session's.
            metadata: default this session's.

        Returns:
            The new session, open.

        Raises:
            InputError: there is no turn `at`, it lies inside an exchange, or the id is refused.
            SessionInUseError: a session of the new id exists already.
            SessionError: this session has no store.
            StoreError: the fork could not be made; nothing was changed.
        """
        store, handle = self._stored("cannot be forked")
        new_id = f"{self.id[:_MOST_CHARACTERS]}~{secrets.token_hex(4)}" if id is None else id
        forked = fork_stored(store, handle, new_id, at=at, owner=owner, metadata=metadata)
        try:
            opened = resume(self.engine, forked)
        except BaseException:
            forked.close()
            store.delete(new_id)
            raise
        session = type(self).__new__(type(self))
        session._begin(self.engine, new_id, store, opened)
        return session

    def rollback(self, to: int) -> None:
        """Go back to where turn `to` was the last one. The model does not run, and the state is
        bit-equal to the earlier one, random numbers included. Later turns and the records that came
        with them are gone; `Store.scrub` removes the last traces of them. Forks keep theirs.

        Args:
            to: index of the last turn that stays, which ends an exchange (see `boundary`); -1: none
                does, the system turn included, and the session is as new.

        Raises:
            InputError: there is no turn `to`, or it lies inside an exchange.
            SessionInUseError: a reply is under way.
            SessionError: the session has no store.
            StoreError: nothing was changed.
        """
        store, handle = self._stored("cannot be rolled back")
        conversation = self._conversation
        with conversation.alone():
            point = point_behind(handle, to, "rollback")
            if point.head == handle.info.head:
                return
            with conversation.changing_past(handle):
                memory, rng = self._earlier(store, handle, point.head)
                handle.rollback(point.head)
                if memory is not None:
                    memory.attach(handle)
                conversation.stand(Opened(Ledger(handle), memory, rng))

    def forget(self, turns: int | Sequence[int], *, progress: Progress | None = None) -> None:
        """Forget single turns as if they had never been said, and remove all traces of them.

        What follows the first of them is read again, as it was recorded; that takes as long as
        reading it did. The indices of later turns close up. Records that came with an exchange which
        loses a turn go, too. Random numbers go on where they stood. Until the end the session in the
        store stays as it is.

        Args:
            turns: indices.
            progress: called with (tokens read, tokens to read).

        Raises:
            InputError: there is no such turn, or it is the system turn; nothing was changed.
            SessionInUseError: a reply is under way.
            SessionError: the session has no store.
            StoreError: nothing was changed; or the turns are forgotten, but not all traces could be
                removed, which the message says.
        """
        store, handle = self._stored("cannot forget")
        conversation = self._conversation
        with conversation.alone():
            gone = self._to_forget(turns)
            if not gone:
                return
            state = {"rng": save_generator(conversation.generator)}
            with conversation.changing_past(handle):
                forget(self.engine, store, handle, gone, state, progress)
                conversation.stand(resume(self.engine, handle))
        store.scrub()

    def recall(self, query: str, k: int = 8, *, text: bool = True) -> list[Recollection]:
        """The turns that `query` brings to mind: first those whose blocks memory looks up for it (for
        its words, and for the first token of a reply), then those that hold words of it. Nothing is
        committed, and no reply is sampled.

        It shows what the look-up of blocks finds, not all a reply is made of: the local window, the
        initial tokens and the compressive memory are in every reply and are traced to no turn. In a
        short session, all of which is in the window, memory finds nothing.

        Args:
            query: a question, as a user would ask it.
            k: most turns of each source; of memory at most those in the 32 best blocks.
            text: also search the text of the turns; that needs a store.

        Returns:
            Those of source "memory", the best first, then those of source "text"; a turn may come
            in both.

        Raises:
            InputError: the query is refused, or `k` is no positive number.
            SessionInUseError: an exchange is under way.
            StoreError: the store has no full-text search; ``text=False`` does without.
        """
        self._check_open()
        return recollect(self._conversation, query, k, text)

    def erase(self) -> None:
        """Close the session and erase it for good: nothing of it is left to be found in its store, but
        for what forks of it share. A reply under way is cancelled.

        Raises:
            StoreError: the session is closed, but not all of it could be erased.
        """
        self._check_open()
        self.close()
        if self._store is not None:
            self._store.erase(self.id)

    def _stored(self, lacks: str) -> tuple[Store, SessionHandle]:
        """Where the session lives."""
        self._check_open()
        handle = self._conversation.ledger.handle
        if self._store is None or handle is None:
            raise SessionError(
                f"session {self.id!r} {lacks} because it has no store; open it with "
                "store=InMemoryStore() at least, from longmem.stores"
            )
        return self._store, handle

    def _earlier(
        self, store: Store, handle: SessionHandle, head: int
    ) -> tuple[SessionMemory | None, Tensor | None]:
        """Memory and random numbers at `head`, read before anything is changed."""
        staged = store.stage(handle, handle.info, head)
        try:
            opened = resume(self.engine, staged)
        finally:
            staged.close()
        return opened.memory, opened.rng

    def _to_forget(self, turns: int | Sequence[int]) -> frozenset[int]:
        given = [turns] if isinstance(turns, int) or not isinstance(turns, Sequence) else turns
        n_turns = self._conversation.ledger.n_turns
        gone = frozenset(check_index(self.id, n_turns, turn) for turn in given)
        if 0 in gone and self.turns(0, 1)[0].role == "system":
            raise InputError(
                f"session {self.id!r}: turn 0 is its system turn, which everything was read under; "
                "begin a new session with another one, or erase() this one"
            )
        return gone
