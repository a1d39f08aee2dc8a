"""Checkpoints as configs name them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from langchain_core.runnables import RunnableConfig

from longmem.adapters.langgraph.checkpoints import Checkpoints
from longmem.adapters.langgraph.rows import Address, Head


def address(config: RunnableConfig) -> tuple[str, str, str | None]:
    """(thread, namespace, checkpoint) that a config names; no checkpoint: the latest is meant."""
    given = config["configurable"]
    return str(given["thread_id"]), given.get("checkpoint_ns") or "", given.get("checkpoint_id")


def config_of(at: Address) -> RunnableConfig:
    """The config that names a checkpoint."""
    thread, namespace, id = at
    return {"configurable": {"thread_id": thread, "checkpoint_ns": namespace, "checkpoint_id": id}}


def candidates(
    checkpoints: Checkpoints, config: RunnableConfig | None, before: str | None
) -> Iterator[Head]:
    """The checkpoints that a config names, the greatest id first; those below `before` alone.

    Args:
        checkpoints: of one owner.
        config: of a thread, and of a namespace or a checkpoint if it names one; None: all.
        before: an id.
    """
    if config is None:
        return _below(checkpoints.heads(), before)
    thread, namespace, id = address(config)
    if id is not None:
        found = checkpoints.head(Address(thread, namespace, id))
        return _below([found] if found else [], before)
    if "checkpoint_ns" in config["configurable"]:
        return checkpoints.newest_first(thread, namespace, before)
    return _below(checkpoints.heads(thread), before)


def _below(heads: Iterable[Head], before: str | None) -> Iterator[Head]:
    return (head for head in heads if before is None or head.at.id < before)
