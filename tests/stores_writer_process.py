"""Forks writers that are killed; run by `stores_faulty.Writer`.

Reads lines ``[path, step, work]`` and answers with the lines ``started PID``, ``acknowledged HEAD``
per commit and ``ended CODE``. Without a step the writer commits forever; with one it commits twice
and kills itself at that step of the third commit. With "merges" for work it merges behind every
commit what it can; with a step it commits five times first and kills itself at that step of a merge.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from typing import Any

import torch

from longmem.store import SessionHandle
from longmem.stores import SQLiteStore
from longmem.stores.samples import fill, sample_info

MERGE_BYTES = 10_000  # three of the commits `fill` makes


def main() -> None:
    torch.set_num_threads(1)  # a forked child has none of its parent's worker threads
    for line in sys.stdin:
        path, step, work = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                write(path, step, merges=work == "merges")
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        say("ended", os.waitstatus_to_exitcode(status))


def write(path: str, step: list[Any] | None, merges: bool) -> None:
    say("started", os.getpid())
    store = SQLiteStore(path, merge_bytes=MERGE_BYTES)
    known = any(info.id == "alice" for info in store.sessions())
    handle = store.open("alice") if known else store.create(sample_info())
    if step is not None:
        for _ in range(5 if merges else 2):
            commit(handle)
        die_at(*step)
    while True:
        if not (merges and handle.merge(handle.info.n_tokens)):
            commit(handle)


def say(word: str, number: int) -> None:
    """A line in one write: half of one might be left by a process that is killed."""
    print(f"{word} {number}\n", end="", flush=True)


def commit(handle: SessionHandle) -> None:
    fill(handle, 1)
    say("acknowledged", handle.info.head)


def die_at(module: str, name: str, call: int, after: bool) -> None:
    """Let the `call`-th call of a function kill this process, before or after its work."""
    *owners, name = name.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), 0

    def wrapped(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        result = original(*args, **options) if after or calls != call else None
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, wrapped)


if __name__ == "__main__":
    main()
