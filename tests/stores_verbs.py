"""What verbs make of a store's sessions, in plain lists; and a process that performs them.

As a process it reads lines ``[path, operations, step]`` and forks a child for each, which answers
``started PID``, then ``begin I`` and ``end I`` around each operation, then ``ended CODE``. With a step
the child kills itself at that step of the last operation.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from stores_writer_process import die_at, say

from longmem.store import Commit, SessionHandle
from longmem.stores import SQLiteStore
from longmem.stores.samples import fill, sample_commit, sample_info

MERGE_BYTES = 10_000  # three of the commits `fill` makes by default

Sessions = dict[str, list[Commit]]
Operation = list[Any]


def after(sessions: Sessions, operation: Operation) -> Sessions:
    """What sessions hold when an operation is through."""
    verb, name, *rest = operation
    held = dict(sessions)
    match verb:
        case "create":
            held[name] = []
        case "commit":
            held[name] = [*held[name], next_commit(name, held[name], rest)]
        case "fork":
            new, head = rest
            held[new] = held[name][:head]
        case "rollback":
            held[name] = held[name][: rest[0]]
        case "rebuild":
            head, *lengths = rest
            kept = held[name][:head]
            held[name] = [*kept, next_commit(name, kept, lengths)]
        case "delete" | "erase":
            del held[name]
    return held


def next_commit(name: str, commits: list[Commit], lengths: list[int]) -> Commit:
    """The commit that `sample_commit` makes for a session that holds `commits`."""
    turns = sum(len(commit.turns) for commit in commits)
    tokens = commits[-1].stop if commits else 0
    info = sample_info(name, head=len(commits), n_turns=turns, n_tokens=tokens)
    return sample_commit(info, lengths)


def perform(store: SQLiteStore, operation: Operation) -> None:
    """Do an operation to a store, with only the sessions open that it needs."""
    verb, name, *rest = operation
    if verb in ("delete", "erase"):
        getattr(store, verb)(name)
        return
    handle = store.create(sample_info(name)) if verb == "create" else store.open(name)
    match verb:
        case "commit":
            fill(handle, 1, rest)
        case "merge":
            handle.merge(handle.info.n_tokens)
        case "fork":
            new, head = rest
            store.fork(name, replace(sample_info(new)), head).close()
        case "rollback":
            handle.rollback(rest[0])
        case "rebuild":
            rebuild(store, handle, *rest)
    handle.close()


def rebuild(store: SQLiteStore, handle: SessionHandle, head: int, *lengths: int) -> None:
    """Let a session hold its first commits and another one, by way of a stand-in."""
    staged = store.stage(handle, handle.info, head)
    fill(staged, 1, lengths)
    store.publish(handle, staged)


def operations(sessions: Sessions, random: Random, count: int) -> Iterator[Operation]:
    """Operations that may follow each other, chosen by chance."""
    for _ in range(count):
        operation = _choose(sessions, random)
        sessions = after(sessions, operation)
        yield operation


def _choose(sessions: Sessions, random: Random) -> Operation:
    fresh = f"s{random.randrange(10**9)}"
    if not sessions:
        return ["create", fresh]
    name = random.choice(sorted(sessions))
    head = random.randint(0, len(sessions[name]))
    lengths = [random.randint(1, 9) for _ in range(2)]
    match random.choice("cccccmmffrrpde"):
        case "c":
            return ["commit", name, *lengths]
        case "f" if len(sessions) < 5:
            return ["fork", name, fresh, head]
        case "r":
            return ["rollback", name, head]
        case "p":
            return ["rebuild", name, head, *lengths]
        case "d" if len(sessions) > 2:
            return ["delete", name]
        case "e" if len(sessions) > 2:
            return ["erase", name]
    return ["merge", name]


class Performer:
    """A process that imports once and then forks a child per run, so that each can be killed."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def start(self, path: Path, todo: list[Operation], step: list[Any] | None = None) -> int:
        """Fork a child that performs operations; returns its process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([str(path), todo, step]) + "\n")
        self.process.stdin.flush()
        word, pid = self._read()
        assert word == "started"
        return pid

    def wait_for_begin(self) -> None:
        """Until the first operation begins."""
        assert self._read() == ("begin", 0)

    def finish(self) -> tuple[int, int]:
        """When the child is gone: how many operations it ended, and its exit code."""
        ended = 0
        while True:
            word, number = self._read()
            if word == "ended":
                return ended, number
            ended += word == "end"

    def _read(self) -> tuple[str, int]:
        assert self.process.stdout is not None
        word, number = self.process.stdout.readline().split()
        return word, int(number)


def main() -> None:
    torch.set_num_threads(1)  # a forked child has none of its parent's worker threads
    for line in sys.stdin:
        path, todo, step = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                perform_all(path, todo, step)
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        say("ended", os.waitstatus_to_exitcode(status))


def perform_all(path: str, todo: list[Operation], step: list[Any] | None) -> None:
    say("started", os.getpid())
    with SQLiteStore(path, merge_bytes=MERGE_BYTES) as store:
        for number, operation in enumerate(todo):
            if step is not None and number == len(todo) - 1:
                die_at(*step)
            say("begin", number)
            perform(store, operation)
            say("end", number)


if __name__ == "__main__":
    main()
