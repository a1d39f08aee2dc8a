"""Which reply the state of a graph ends with, also where its messages do not show it to the model.

A graph may hand its model the last message alone. Whether that goes on from the session's last
turn, or from an older one to which somebody travelled back, is written in the checkpoint the task
was started with.
"""

from __future__ import annotations

import time

from longmem.adapters.langgraph.checkpoints import Checkpoints
from longmem.adapters.langgraph.retention import behind
from longmem.adapters.langgraph.rows import Address, Head
from longmem.store import Records

PATIENCE_SECONDS = 2.0
"""How long to wait for a checkpoint that LangGraph is writing while its tasks run already."""


def last_reply(checkpoints: Checkpoints, head: Head, memory: str = "") -> tuple[str, int] | None:
    """(branch, turn) of the last reply in the state of a checkpoint; None if it holds none.

    Args:
        checkpoints: of the owner.
        head: the checkpoint.
        memory: replies of this one; see `longmem.adapters.langchain.place.Place`.
    """
    values = checkpoints.replies(head, writes=False)  # its writes are for the state that follows
    for ancestor in behind(checkpoints, head):
        values += checkpoints.replies(ancestor)
    found = [(branch, turn) for value in values for name, branch, turn in value if name == memory]
    return max(found, key=lambda reply: reply[1], default=None)


def reply_before(
    records: Records, owner: str | None, at: Address, memory: str
) -> tuple[str, int] | None:
    """`last_reply` of the checkpoint that a task was started with, which may not be there for some
    milliseconds; None also if no `LongMemSaver` on that store writes it."""
    checkpoints = Checkpoints(records, owner or "")
    if checkpoints.latest(at.thread, at.namespace) is None:
        return None
    given_up = time.monotonic() + PATIENCE_SECONDS
    while (head := checkpoints.head(at)) is None and time.monotonic() < given_up:
        time.sleep(0.005)
    return None if head is None else last_reply(checkpoints, head, memory)
