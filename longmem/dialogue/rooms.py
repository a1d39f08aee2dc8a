"""Where an exchange happens: claims on sessions, and sessions leased, made and removed for it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from longmem.dialogue import unfinished
from longmem.dialogue.ids import fork_name, session_id
from longmem.dialogue.redo import Redo
from longmem.errors import InputError, SessionInUseError, StoreError

if TYPE_CHECKING:
    from longmem.dialogue.dialogue import Dialogue
    from longmem.dialogue.request import Request
    from longmem.dialogue.system import Prompt
    from longmem.session import Session


class Rooms:
    """Claims and leases of one exchange, given back by `close`.

    Args:
        dialogue: where the sessions are.
        request: what is asked.
    """

    def __init__(self, dialogue: Dialogue, request: Request) -> None:
        self._dialogue, self._request = dialogue, request
        self._stack, self._source = ExitStack(), ExitStack()
        self._keeps = False
        self.shared = False
        """Whether another exchange is writing the session: it can only be forked."""
        self.pins = False
        """Whether the prompt, if there is one, was read just now."""

    def close(self, done: bool) -> None:
        """Give everything back. A session made for the exchange goes, unless it is `done`."""
        self._keeps = done and self._request.store
        try:
            self._stack.close()
        finally:
            self._source.close()

    def take(self, name: str, refusal: str) -> None:
        """Claim `name` until the end of the exchange.

        Raises:
            SessionInUseError: it is taken.
        """
        self._stack.enter_context(self._dialogue.claims.take(name, refusal))

    def branch(self, key: str, refusal: str) -> None:
        """Note what is being answered in a fork; a retry of it would be one answer too many.

        Raises:
            SessionInUseError: this request is a retry, and the first try is under way.
        """
        claims = self._dialogue.claims
        retry = self._request.retry
        self._stack.enter_context(claims.take(key, refusal) if retry else claims.share(key))

    def leave_source(self) -> None:
        """The session that the request names is not needed any more."""
        self._source.close()
        self.shared = False

    def stateless(self, prompt: Prompt) -> Session:
        """A session that nobody sees and nothing stays of."""
        self.pins = True
        name = f"stateless-{secrets.token_hex(4)}"
        return self._stack.enter_context(self._dialogue.engine.session(name, **prompt.options))

    def claim_source(self, stored_id: str, name: str) -> None:
        """Claim the session that the request names, or note that it is `shared`.

        Raises:
            SessionInUseError: another exchange is writing it, and the request needs it whole.
        """
        refusal = f"session {name!r} is in the middle of an exchange; try again when it is over"
        try:
            self._source.enter_context(self._dialogue.claims.take(stored_id, refusal))
        except SessionInUseError:
            request = self._request
            named = request.at is not None and request.fork_id is not None
            if not named or request.diverge != "fork" or request.retry:
                raise
            self.shared = True
            info = self._dialogue.find(request.owner, stored_id)
            if info is None or not info.n_turns:
                raise

    def source(self, stored_id: str, prompt: Prompt) -> Session:
        """The session that the request names; a new or empty one gets the prompt pinned."""
        info = self._dialogue.find(self._request.owner, stored_id)
        self.pins = info is None or not info.n_turns
        if not self.pins:
            return self._source.enter_context(self._leased(stored_id, {"create": False}))
        options = prompt.options | {"metadata": self._request.metadata}
        leased = self._leased(stored_id, options, fresh=info is None, empty=info is not None)
        return self._source.enter_context(leased)

    def fork(self, stored_id: str, name: str, at: int, prompt: Prompt) -> tuple[str, Session]:
        """A fork of the session behind turn `at`; the session is free for others then.

        Args:
            stored_id, name: its id in the store, and its public one.
            at: -1: an empty session, with the same prompt.
            prompt: what is pinned in it.

        Returns:
            The fork's id in the store, and the fork.

        Raises:
            InputError: there is a session of the fork's id already.
        """
        request, dialogue = self._request, self._dialogue
        public = request.fork_id or fork_name(name)
        fork = session_id(request.owner, public)
        self.take(fork, f"session {public!r} is being made by another request; try again later")
        if dialogue.find(request.owner, fork) is not None:
            raise InputError(
                f"fork_id {public!r} is the id of a session that is there already; choose another"
            )
        store, metadata = dialogue.pool.store, request.metadata
        unfinished.expect(store, fork, max(at, 0) + 1)  # at -1 it may get a system prompt
        try:
            dialogue.pool.fork(stored_id, fork, at=at, owner=request.owner, metadata=metadata)
        except BaseException:
            unfinished.finished(store, fork)
            raise
        self.pins = at < 0
        options = prompt.options if self.pins else {}
        session = self._stack.enter_context(self._leased(fork, options, fresh=True))
        self._source.close()
        return fork, session

    def redo(self, session: Session, at: int, prompt: Prompt) -> Redo:
        """A stand-in for the session behind turn `at`, with the same prompt."""
        redo = Redo(session, at)
        self._stack.callback(redo.close)
        self.pins = at < 0
        if self.pins:
            redo.session.begin(prompt.system, prompt.tools)
        return redo

    @contextmanager
    def peek(self, stored_id: str) -> Iterator[Session]:
        """A session to look at."""
        with self._leased(stored_id, {"create": False}) as session:
            yield session

    @contextmanager
    def _leased(
        self,
        stored_id: str,
        options: Mapping[str, Any],
        *,
        fresh: bool = False,
        empty: bool = False,
    ) -> Iterator[Session]:
        """A session of the pool. After an exchange that is not kept, one made for it is removed, and
        one that had no turns has none again."""
        pool = self._dialogue.pool
        try:
            with pool.session(stored_id, owner=self._request.owner, **options) as session:
                try:
                    if fresh:
                        unfinished.note(pool.store, stored_id, session.n_turns)
                    yield session
                finally:
                    if fresh and self._keeps:
                        with suppress(StoreError):  # then the note is removed by the next sweep
                            unfinished.finished(pool.store, stored_id)
                    elif fresh:
                        session.close()
                    elif empty and not self._keeps and session.n_turns:
                        session.rollback(-1)
        finally:
            if fresh and not self._keeps:
                with suppress(SessionInUseError):  # somebody looks at it
                    unfinished.remove(pool.store, stored_id)
