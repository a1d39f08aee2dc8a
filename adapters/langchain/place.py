"""Where a call belongs: which session, and which branch of it.

A session is named by the caller or by the thread of a graph. Where messages diverge from what it
holds, the dialogue answers in a fork, ``thread~1f2e3d4c``: a branch. Every reply carries its branch
in ``response_metadata``, so that the last reply in a list of messages tells on which branch the
conversation goes on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig

from longmem.dialogue import Outcome

_BRANCH = re.compile(r"(~[0-9a-f]{8})?")


@dataclass(frozen=True)
class Place:
    """A session's name in its parts.

    Args:
        thread: what the caller or the graph calls the conversation; None: nothing is kept.
        memory: name of this model's own memory in it; "" for the thread's first.
        branch: "", or "~" and 8 hex digits of a fork.
    """

    thread: str | None
    memory: str = ""
    branch: str = ""

    @property
    def base(self) -> str | None:
        """Public id of the session that was there before all forks."""
        if self.thread is None:
            return None
        return f"{self.thread}.{self.memory}" if self.memory else self.thread

    @property
    def session(self) -> str | None:
        """Public id of the branch's session."""
        return None if self.base is None else f"{self.base}{self.branch}"


def branch_of(messages: Sequence[BaseMessage], memory: str = "") -> str:
    """The branch on which the last of these replies was given; "" where none tells."""
    found = (ref for message in reversed(messages) if (ref := reference(message)))
    return next((branch for name, branch, _ in found if name == memory), "")


def reference(message: object) -> tuple[str, str, int] | None:
    """(memory, branch, turn) of a reply that a session holds; None for any other value."""
    if not isinstance(message, AIMessage):
        return None
    details = message.response_metadata
    memory, branch, turn = (details.get(key) for key in ("memory", "branch", "turn"))
    if details.get("model_provider") != "longmem" or not isinstance(turn, int):
        return None
    if not isinstance(memory, str) or not isinstance(branch, str) or not _BRANCH.fullmatch(branch):
        return None
    return memory, branch, turn


def branch_details(outcome: Outcome, place: Place) -> dict[str, Any]:
    """What `reference` reads, and the session's whole name, for ``response_metadata``."""
    if outcome.session is None or outcome.turn is None or place.base is None:
        return {}
    return {
        "session": outcome.session,
        "memory": place.memory,
        "branch": outcome.session.removeprefix(place.base),
        "turn": outcome.turn,
    }


def surroundings(config: RunnableConfig) -> dict[str, str]:
    """What a runnable's config tells of the call; plain text, because tracers write it down.

    Returns:
        "thread": its ``thread_id``. In a graph with a checkpointer, whose messages are the whole
        conversation, also "task": the id that a task keeps when it is run again after a crash, and
        "checkpoint" and "namespace": where the state it was started with is, or is being, written.
    """
    given: Mapping[str, Any] = config.get("configurable") or {}
    thread = given.get("thread_id")
    if thread is None:
        return {}
    found = {"thread": str(thread)}
    if given.get("__pregel_checkpointer") is not None and given.get("__pregel_task_id"):
        found["task"] = str(given["__pregel_task_id"])
        states = given.get("checkpoint_map") or {}
        here = "|".join(str(given.get("checkpoint_ns") or "").split("|")[:-1])
        if here in states and given.get("__pregel_durability") != "exit":
            found |= {"checkpoint": str(states[here]), "namespace": here}
    return found
