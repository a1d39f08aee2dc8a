"""The memory sessions of a graph's threads, and what becomes of them when checkpoints go.

A thread's sessions are the one of its name, its forks (``thread~1f2e3d4c``: branches), and those of
further memories in it (``thread.planner``), as `longmem.adapters.langchain.ChatLongMem` names them.
Which replies of which branch a checkpoint's state holds is noted with it; see `rows.replies_in`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from longmem.adapters.langgraph.rows import Reply
from longmem.adapters.langgraph.stored_sessions import Sessions
from longmem.store import SessionInfo

_NAME = re.compile(r"(?:\.(?P<memory>.+?))?(?P<branch>(?:~[0-9a-f]{8})?)", re.DOTALL)


@dataclass(frozen=True)
class ThreadMemory:
    """See the module.

    Args:
        sessions: does it.
        owner: whose.
    """

    sessions: Sessions
    owner: str | None

    def of(self, thread: str) -> list[SessionInfo]:
        """The sessions of a thread."""
        return [
            info
            for info in self.sessions.sessions(self.owner)
            if _belongs(info, thread) and _name(info.id, thread)
        ]

    def delete(self, thread: str) -> None:
        """Delete all sessions of a thread.

        Raises:
            SessionInUseError: one of them is in the middle of an exchange; it stays, and so do
                those not reached yet.
        """
        for info in self.of(thread):
            self.sessions.delete(self.owner, info.id)

    def copy(self, source: str, target: str) -> None:
        """Fork each session of a thread under the other's name; without reading a token.

        Raises:
            SessionInUseError, InputError: a session of the target's is there already.
        """
        for info in self.of(source):
            if info.head:
                name = target + info.id.removeprefix(source)
                about = {**info.metadata, "thread": target}
                self.sessions.fork(self.owner, info.id, name, metadata=about)

    def retain(
        self,
        thread: str,
        kept: Iterable[Sequence[Sequence[Reply]]],
        dropped: Iterable[Sequence[Sequence[Reply]]],
    ) -> None:
        """Forget what no kept checkpoint knows of.

        A branch on which a kept state ends stays up to the last reply that such states hold; what
        follows is rolled back. A branch on which none ends is deleted. Sessions whose replies no
        state held, kept or dropped, are left alone.

        Args:
            thread: the thread.
            kept, dropped: of each checkpoint, for each value and write, its replies.

        Raises:
            SessionInUseError: one of them is in the middle of an exchange.
        """
        reach: dict[tuple[str, str], int] = {}
        ends: set[tuple[str, str]] = set()
        for value in (value for state in kept for value in state):
            for memory, branch, turn in value:
                reach[memory, branch] = max(turn, reach.get((memory, branch), -1))
            ends |= set({memory: (memory, branch) for memory, branch, _ in value}.values())
        known = {
            (memory, branch) for state in dropped for value in state for memory, branch, _ in value
        }
        for info in self.of(thread):
            name = _name(info.id, thread)
            if name in ends and info.n_turns - 1 > reach[name]:
                self.sessions.rollback(self.owner, info.id, reach[name])
            elif name not in ends and (name in known or name in reach):
                self.sessions.delete(self.owner, info.id)


def _belongs(info: SessionInfo, thread: str) -> bool:
    """Whether a session was begun in a thread; one that was begun elsewhere says nothing of threads,
    and belongs to that of its name."""
    return info.metadata.get("thread", info.id) == thread and info.id.startswith(thread)


def _name(session: str, thread: str) -> tuple[str, str] | None:
    """(memory, branch) of a thread's session."""
    found = _NAME.fullmatch(session.removeprefix(thread))
    return (found["memory"] or "", found["branch"]) if found else None
