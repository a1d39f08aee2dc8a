"""The start of an exchange: which session it happens in, what is read there, what is repeated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from longmem.dialogue import stored_replies
from longmem.dialogue.chain import KEY, START, chain, link
from longmem.dialogue.ids import public_id
from longmem.dialogue.message import message_turn
from longmem.dialogue.past import Past
from longmem.dialogue.reconcile import Plan, reconcile
from longmem.dialogue.rooms import Rooms
from longmem.dialogue.system import Prompt, check, pinned, split
from longmem.errors import DivergedError
from longmem.types import Turn

if TYPE_CHECKING:
    from longmem.dialogue.dialogue import Dialogue
    from longmem.dialogue.events import Outcome
    from longmem.dialogue.redo import Redo
    from longmem.dialogue.request import Request
    from longmem.session import Session


@dataclass(frozen=True)
class Opened:
    """What an exchange starts from.

    Args:
        session: reads the turns and replies; None for a repeat.
        turns: what it reads, chain values in their `extra`.
        count: messages before the reply.
        value: their chain value.
        tools: definitions of those the session knows.
        pinned: tokens of it that were read just now.
        stored_id: of the session that keeps the exchange; None: none does.
        redo: a stand-in of the session that reads instead of it; if the exchange is kept, it takes the
            place of what the session went on with.
        forked_from: public id of the session it diverged from.
        pointers: (name space, key, digest of the request) of the records that lead a repeat to the reply.
        stored: the outcome of an earlier, equal request.
    """

    session: Session | None = None
    turns: Sequence[Turn] = ()
    count: int = 0
    value: bytes = START
    tools: Sequence[dict[str, Any]] = ()
    pinned: int = 0
    stored_id: str | None = None
    redo: Redo | None = None
    forked_from: str | None = None
    pointers: Sequence[tuple[str, str, str]] = ()
    stored: Outcome | None = None


_MOST_FORKS = 64
"""Forks of forks that are followed."""


@dataclass(frozen=True)
class _There:
    """A session, what is pinned in it, and what a list of messages asks of it."""

    session: Session
    stored_id: str
    name: str
    held: Prompt
    plan: Plan
    past: Past

    @property
    def start(self) -> bytes:
        """The chain value of the messages that stay."""
        return self.past.chain(max(self.plan.keep, 0))

    @property
    def last(self) -> int:
        """Index of the last turn that stays."""
        return self.past.offset + self.plan.keep - 1


class Opening:
    """Finds, for one request, the session and what is new for it.

    Args:
        dialogue: where it happens.
        request: what is asked.
    """

    def __init__(self, dialogue: Dialogue, request: Request) -> None:
        self._dialogue, self._request = dialogue, request
        self._prompt, self._messages = split(request)
        self._rooms = Rooms(dialogue, request)
        self._pointers: list[tuple[str, str, str]] = []
        self.close = self._rooms.close
        """Gives back what `open` took; what was made for an exchange that is not done goes."""

    def open(self) -> Opened:
        """Everything that comes before the first token is read.

        Raises:
            SessionInUseError: another exchange is writing the session.
            InputError: the messages, or what is asked about them, cannot be served.
            StoreError: nothing is left of the attempt.
        """
        try:
            if self._request.session is None:
                return self._stateless()
            return self._by_key() or self._in_session(self._request.session)
        except BaseException:
            self.close(done=False)
            raise

    def _stateless(self) -> Opened:
        session = self._rooms.stateless(self._prompt)
        past = Past(session)
        plan = reconcile(past, self._messages, "new")
        opened = self._opened(_There(session, session.id, session.id, self._prompt, plan, past))
        return replace(opened, stored_id=None)

    def _in_session(self, name: str) -> Opened:
        request, dialogue = self._request, self._dialogue
        stored_id = dialogue.resolve(request.owner, name)
        self._rooms.claim_source(stored_id, name)
        if not request.store and dialogue.find(request.owner, stored_id) is None:
            return self._stateless()
        there = self._furthest(self._compare(stored_id, name))
        name = there.name
        forks = self._rooms.shared or (request.always_fork and request.store)
        if request.retry and request.store and there.plan.repeats and not forks:
            return self._repeated(there.past.last_turn(), name, self._unless_named(name))
        if not there.plan.diverges and not forks:
            return replace(self._opened(there), forked_from=self._unless_named(name))
        if request.diverge == "refuse":
            raise DivergedError(
                f"session {name!r} went on otherwise behind turn {there.last}; answer in a fork "
                '(diverge="fork"), roll it back (diverge="rollback"), or send what it holds'
            )
        if request.diverge == "fork" and request.store:
            return self._forked(there)
        redo = self._rooms.redo(there.session, there.last, there.held)
        return replace(self._opened(replace(there, session=redo.session)), redo=redo)

    def _furthest(self, there: _There) -> _There:
        """The session, or of its forks the one that goes along with the list for longest."""
        for _ in range(_MOST_FORKS):
            fork = self._followed(there)
            if fork is None:
                break
            further = self._moved(fork, public_id(self._request.owner, fork))
            if further.plan.agreed <= there.plan.agreed:  # it was rolled back since
                return self._moved(there.stored_id, there.name)
            there = further
        return there

    def _moved(self, stored_id: str, name: str) -> _There:
        """Another session, in place of the one that was claimed."""
        self._rooms.leave_source()
        self._rooms.claim_source(stored_id, name)
        return self._compare(stored_id, name)

    def _compare(self, stored_id: str, name: str) -> _There:
        """The session, and what is new for it."""
        session = self._rooms.source(stored_id, self._prompt)
        past = Past(session)
        held = pinned(past.system)
        if self._request.on_system == "refuse":
            check(self._prompt, held, name)
        plan = reconcile(past, self._messages, self._request.scope, self._request.at)
        return _There(session, stored_id, name, held, plan, past)

    def _followed(self, there: _There) -> str | None:
        """The fork that was made for a part of the same list before, behind where it diverges: callers
        that name the first session again and again go on there."""
        plan, unknown = there.plan, self._messages[len(self._messages) - there.plan.unknown :]
        if self._request.diverge != "fork" or not plan.diverges:
            return None
        values = chain(unknown, there.past.chain(plan.agreed))
        for i in range(len(unknown) - 1, 0, -1):
            if unknown[i - 1].role in ("user", "tool"):
                key = stored_replies.branch_key(there.stored_id, values[i])
                found = self._dialogue.pool.store.records.get(stored_replies.BRANCHES, key)
                if found and self._dialogue.find(self._request.owner, found["session"]):
                    return str(found["session"])
        return None

    def _forked(self, there: _There) -> Opened:
        """The exchange happens in a fork."""
        request, name = self._request, there.name
        value = chain(there.plan.messages, there.start)[-1]
        key = stored_replies.branch_key(there.stored_id, value)
        if request.retry and (found := self._find(stored_replies.BRANCHES, key)):
            return found
        waiting = "is being forked for the same messages; try again when that is over"
        self._rooms.branch(key, f"session {name!r} {waiting}")
        fork, session = self._rooms.fork(there.stored_id, name, there.last, there.held)
        self._pointers.append((stored_replies.BRANCHES, key, ""))
        opened = self._opened(replace(there, session=session, stored_id=fork))
        return replace(opened, forked_from=name)

    def _unless_named(self, name: str) -> str | None:
        """The session that the request names, if it is another one."""
        return None if name == self._request.session else self._request.session

    def _opened(self, there: _There) -> Opened:
        plan, session, start = there.plan, there.session, max(there.plan.keep, 0)
        values, stop = chain(plan.messages, there.start), start + len(plan.messages)
        turns = [message_turn(each, self._dialogue.engine.chat) for each in plan.messages]
        linked = [
            replace(turn, extra={**turn.extra, KEY: link(start + i, values[i])})
            for i, turn in enumerate(turns, 1)
        ]
        return Opened(
            session,
            linked,
            stop,
            values[-1],
            there.held.tools or self._prompt.tools,
            session.turns(0, 1)[0].tokens if self._rooms.pins and session.n_turns else 0,
            there.stored_id if self._request.store else None,
            pointers=self._pointers,
        )

    def _by_key(self) -> Opened | None:
        """The stored reply to an earlier request of the same key."""
        key = stored_replies.key_of(self._request)
        if key is None or not self._request.store:
            return None
        name = self._request.idempotency_key
        self._rooms.take(key, f"a request of key {name!r} is under way; try again when it is over")
        digest = stored_replies.input_digest(self._request)
        self._pointers.append((stored_replies.KEYS, key, digest))
        return self._find(stored_replies.KEYS, key)

    def _find(self, namespace: str, key: str) -> Opened | None:
        """The reply that a record leads to, if it is still there."""
        request, dialogue = self._request, self._dialogue
        found = dialogue.pool.store.records.get(namespace, key)
        if found is None or dialogue.find(request.owner, found["session"]) is None:
            return None
        if namespace == stored_replies.KEYS:
            stored_replies.check_same(found, request)
        with self._rooms.peek(found["session"]) as session:
            turn = stored_replies.turn_of(session, found)
        if turn is None:
            return None
        name = public_id(request.owner, found["session"])
        return self._repeated(turn, name, found["forked_from"])

    def _repeated(self, turn: Turn, name: str, forked_from: str | None) -> Opened:
        outcome = stored_replies.repeat(turn, name, forked_from)
        return Opened(forked_from=forked_from, stored=outcome)
