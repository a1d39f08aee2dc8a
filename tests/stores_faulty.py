"""Faults for stores: functions that fail at a given call, and writers that are killed at one."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longmem.store import Commit
from longmem.stores.samples import sample_commit, sample_info

Step = tuple[str, str, int, bool]
"""A step of a commit or merge: module, function, which call of it, whether it has done its work."""

WRITER = Path(__file__).with_name("stores_writer_process.py")


def failing(
    original: Callable[..., Any], error: BaseException, call: int, *, after: bool
) -> Callable[..., Any]:
    """`original`, but its `call`-th call raises, before or after doing its work."""
    calls = itertools.count(1)

    def wrapped(*args: Any, **options: Any) -> Any:
        number = next(calls)
        if number == call and not after:
            raise error
        result = original(*args, **options)
        if number == call:
            raise error
        return result

    return wrapped


class Writer:
    """A process that imports once and then forks a writer per run, so that each can be killed."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(WRITER)], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def start(self, path: Path, crash_at: Step | None, work: str = "commits") -> int:
        """Fork a writer that commits, or merges, until it dies; returns its process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([str(path), crash_at, work]) + "\n")
        self.process.stdin.flush()
        return self.read("started")

    def read(self, word: str) -> int:
        """The number on the next line, which must start with `word`."""
        assert self.process.stdout is not None
        found, number = self.process.stdout.readline().split()
        assert found == word
        return int(number)

    def drain(self) -> list[int]:
        """Heads acknowledged until the writer died of SIGKILL."""
        assert self.process.stdout is not None
        heads = []
        for line in self.process.stdout:
            word, number = line.split()
            if word == "ended":
                assert int(number) == -signal.SIGKILL
                break
            heads.append(int(number))
        return heads


@pytest.fixture(scope="module")
def writer() -> Iterator[Writer]:
    """One for all tests of a file, which takes it by assignment: ``writer = stores_faulty.writer``."""
    writer = Writer()
    yield writer
    writer.process.kill()
    writer.process.communicate()


def commits_up_to(count: int) -> list[Commit]:
    """What `stores_writer_process` commits first."""
    info = sample_info()
    heads = (replace(info, head=i, n_tokens=12 * i, n_turns=2 * i) for i in range(count))
    return [sample_commit(head) for head in heads]
