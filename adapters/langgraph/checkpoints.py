"""The checkpoints of one owner: read and written as records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    PendingWrite,
    writes_sort_key,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from longmem.adapters.langgraph.rows import (
    CHECKPOINTS,
    RUNS,
    VALUES,
    WRITES,
    Address,
    Head,
    Reply,
    head_of,
    key,
    pack,
    prefix,
    replies_in,
    split,
    unpack,
    version_text,
)
from longmem.store import Record, Records

_PAGE = 64
"""Checkpoints read at once while a thread is listed."""
_OF_THREADS = (CHECKPOINTS, VALUES, WRITES)


@dataclass(frozen=True)
class Checkpoints:
    """See the module.

    Args:
        records: of the store.
        owner: "" for threads without one.
    """

    records: Records
    owner: str

    def head(self, at: Address) -> Head | None:
        """One checkpoint; None if there is none."""
        name = key(self.owner, *at)
        row = self.records.get(CHECKPOINTS, name)
        return None if row is None else head_of(name, row)

    def latest(self, thread: str, namespace: str) -> Head | None:
        """The checkpoint with the greatest id."""
        return next(self.newest_first(thread, namespace, limit=1), None)

    def newest_first(
        self, thread: str, namespace: str, before: str | None = None, limit: int | None = None
    ) -> Iterator[Head]:
        """The checkpoints of one namespace, by descending id, those below `before` alone."""
        stem = prefix(self.owner, thread, namespace)
        after = None if before is None else key(self.owner, thread, namespace, before)
        size = min(_PAGE, _PAGE if limit is None else limit)
        while page := self.records.list(
            CHECKPOINTS, stem, after=after, limit=size, newest_first=True
        ):
            yield from (head_of(name, row) for name, row in page)
            after = page[-1][0]

    def heads(self, *parts: str) -> list[Head]:
        """All checkpoints of a thread (and namespace), or of all threads, by descending id."""
        rows = self.records.list(CHECKPOINTS, prefix(self.owner, *parts))
        return sorted((head_of(*row) for row in rows), key=lambda head: head.at.id, reverse=True)

    def of_run(self, run: str) -> list[Address]:
        """The checkpoints that a run made."""
        found = self.records.list(RUNS, prefix(self.owner, run))
        return [Address(*split(name)[2:]) for name, _ in found]

    def put(
        self, head: Head, values: Mapping[str, Any], new: ChannelVersions, serde: SerializerProtocol
    ) -> None:
        """Store a checkpoint and those of its values that are new, in one transaction."""
        puts = [self._record(head)]
        for channel, version in new.items():
            if channel in values:
                value = values[channel]
                name = self._value_key(head.at, channel, version)
                row = {"value": pack(serde, value), "replies": replies_in(value)}
                puts.append(Record(VALUES, name, row))
        if head.run is not None:
            puts.append(Record(RUNS, key(self.owner, head.run, *head.at), {}))
        self.records.apply(puts)

    def values(self, head: Head, serde: SerializerProtocol) -> dict[str, Any]:
        """The values of a checkpoint's channels, as far as they are stored."""
        return {
            channel: unpack(serde, row["value"])
            for channel in head.versions
            if (row := self.value_row(head, channel)) is not None
        }

    def value_row(self, head: Head, channel: str) -> Any | None:
        """The record of a channel's value at a checkpoint."""
        name = self._value_key(head.at, channel, head.versions[channel])
        return self.records.get(VALUES, name)

    def put_writes(
        self,
        at: Address,
        writes: Sequence[tuple[str, Any]],
        task: str,
        path: str,
        serde: SerializerProtocol,
    ) -> None:
        """Store what a task wrote; what it wrote before stays, but for errors and interrupts."""
        puts = []
        for position, (channel, value) in enumerate(writes):
            index = WRITES_IDX_MAP.get(channel, position)
            name = key(self.owner, *at, task, str(index))
            if index < 0 or self.records.get(WRITES, name) is None:
                row = {"channel": channel, "path": path, "value": pack(serde, value)}
                puts.append(Record(WRITES, name, {**row, "replies": replies_in(value)}))
        self.records.apply(puts)

    def writes(self, at: Address, serde: SerializerProtocol) -> list[PendingWrite]:
        """(task, channel, value) of all writes at a checkpoint, in the order they are applied."""
        found = []
        for name, row in self.records.list(WRITES, prefix(self.owner, *at)):
            task, index = split(name)[-2:]
            write = (task, row["channel"], unpack(serde, row["value"]))
            found.append((writes_sort_key(row["path"], task, int(index)), write))
        return [write for _, write in sorted(found, key=lambda pair: pair[0])]

    def replies(self, head: Head, *, writes: bool = True) -> list[list[Reply]]:
        """For each value (and each write) of a checkpoint, the replies among its messages."""
        rows = [self.value_row(head, channel) for channel in head.versions]
        if writes:
            rows += [row for _, row in self.records.list(WRITES, prefix(self.owner, *head.at))]
        return [[(m, b, t) for m, b, t in row["replies"]] for row in rows if row is not None]

    def drop(self, doomed: Iterable[Head], stay: Sequence[Head], changed: Iterable[Head]) -> None:
        """Delete checkpoints of one thread with their writes, and values that no other uses.

        Args:
            doomed: to delete.
            stay: all others of the thread.
            changed: of those, the ones to store anew.
        """
        doomed = list(doomed)
        used = {name for head in stay for name in self._value_keys(head)}
        deletes = [(CHECKPOINTS, key(self.owner, *head.at)) for head in doomed]
        deletes += [(RUNS, key(self.owner, head.run, *head.at)) for head in doomed if head.run]
        for head in doomed:
            deletes += [(VALUES, name) for name in self._value_keys(head) if name not in used]
            found = self.records.list(WRITES, prefix(self.owner, *head.at))
            deletes += [(WRITES, name) for name, _ in found]
        self.records.apply([self._record(head) for head in changed], deletes)

    def drop_thread(self, thread: str) -> None:
        """Delete everything of a thread."""
        deletes = [
            (space, name)
            for space in _OF_THREADS
            for name, _ in self.records.list(space, prefix(self.owner, thread))
        ]
        runs = (head for head in self.heads(thread) if head.run)
        deletes += [(RUNS, key(self.owner, head.run or "", *head.at)) for head in runs]
        self.records.apply([], deletes)

    def copy_thread(self, source: str, target: str) -> None:
        """Store everything of a thread once more under another's name, in one transaction."""
        puts = [
            Record(space, key(self.owner, target, *split(name)[2:]), row)
            for space in _OF_THREADS
            for name, row in self.records.list(space, prefix(self.owner, source))
        ]
        for head in self.heads(source):
            if head.run:
                at = head.at._replace(thread=target)
                puts.append(Record(RUNS, key(self.owner, head.run, *at), {}))
        self.records.apply(puts)

    def _record(self, head: Head) -> Record:
        return Record(CHECKPOINTS, key(self.owner, *head.at), head.row)

    def _value_keys(self, head: Head) -> list[str]:
        return [self._value_key(head.at, channel, v) for channel, v in head.versions.items()]

    def _value_key(self, at: Address, channel: str, version: Any) -> str:
        return key(self.owner, at.thread, at.namespace, channel, version_text(version))


def without_parents(stay: Sequence[Head], doomed: Mapping[Address, Head]) -> list[Head]:
    """Those whose parent goes, tied to the next ancestor that stays instead."""
    changed = []
    for head in stay:
        parent = head.parent
        while parent is not None and (gone := doomed.get(head.at._replace(id=parent))):
            parent = gone.parent
        if parent != head.parent:
            changed.append(replace(head, parent=parent))
    return changed
