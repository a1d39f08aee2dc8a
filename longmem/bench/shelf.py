"""Stored histories of several lengths, read once and measured many times.

One session grows in one store; at each length its folder is copied, immutable files as hard links.
What a benchmark measures is a copy of such a copy, so that none finds what another one left.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path

from longmem.bench.chat_stream import Report, Talk, silent
from longmem.bench.room import check_room
from longmem.engine import Engine
from longmem.errors import ConfigError
from longmem.session import Session

SESSION = "history"
"""Its id in every store of the shelf."""
_GROWING = "growing"
_CARD = "shelf.json"


class Shelf:
    """Histories under one folder, one store for each length.

    Args:
        folder: where they lie; histories found there are used again if they were read under the
            same model and layout.
        engine: the model and memory that read them.

    Raises:
        ConfigError: the histories there were read under others.
    """

    def __init__(self, folder: Path, engine: Engine) -> None:
        self.folder = folder
        self.bytes_copied = 0
        """Bytes that copies of stores took, links apart."""
        self._engine = engine
        self._card = folder / _CARD
        written = dict(engine.fingerprint)
        if self._card.exists() and json.loads(self._card.read_text("utf-8")) != written:
            raise ConfigError(
                f"the histories in {folder} were read under another model or memory; take an empty "
                "folder, or remove them"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._card.write_text(json.dumps(written), "utf-8")

    @property
    def growing(self) -> Path:
        """The store of the session that grows."""
        return self.folder / _GROWING

    def at(self, tokens: int) -> Path:
        """The store with the history of `tokens` tokens, or a few more."""
        return self.folder / str(tokens)

    def lengths(self) -> list[int]:
        """The lengths there are, in order."""
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def missing(self, lengths: Sequence[int]) -> list[int]:
        """Those lengths that were not read yet, in order."""
        return sorted({*lengths} - {*self.lengths()})

    def fill(
        self,
        lengths: Sequence[int],
        report: Report = silent,
        after: Callable[[int, Session], None] = lambda held, session: None,
    ) -> None:
        """Read what is missing, in one session from the first to the last length.

        Args:
            after: called with the tokens held and the session behind each commit.

        Raises:
            ConfigError: the disk has no room for it.
        """
        missing = self.missing(lengths)
        if not missing:
            return
        from longmem.stores import SQLiteStore

        check_room(self._engine, "these settings", missing[-1], self.folder)
        shutil.rmtree(self.growing, ignore_errors=True)
        before = max((n for n in self.lengths() if n < missing[0]), default=0)
        if before:
            copy_store(self.at(before), self.growing)
        talk = Talk(self._engine, first_day=before)
        for tokens in missing:
            with (
                SQLiteStore(self.growing) as store,
                self._engine.session(SESSION, store=store) as session,
            ):
                talk.read_to(session, tokens, _heard(session, after))
                report(f"history: {session.stats().tokens:,} of {missing[-1]:,} tokens read")
            self.bytes_copied += copy_store(self.growing, self.at(tokens))
        shutil.rmtree(self.growing)

    def take(self, tokens: int) -> Path:
        """A copy of the history of `tokens` tokens, to be measured and changed."""
        taken = (self.folder / f"taken-{tokens}-{i}" for i in count())
        place = next(path for path in taken if not path.exists())
        copy_store(self.at(tokens), place)
        return place


@contextmanager
def taken(shelf: Shelf, tokens: int) -> Iterator[Path]:
    """A copy of the history of `tokens` tokens that goes at the end."""
    folder = shelf.take(tokens)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def opened(shelf: Shelf, engine: Engine, lengths: Sequence[int]) -> Iterator[dict[int, Session]]:
    """One open session per length, by length, each in a store of its own that goes at the end."""
    from longmem.stores import SQLiteStore

    with ExitStack() as stack:
        sessions = {}
        for tokens in lengths:
            folder = stack.enter_context(taken(shelf, tokens))
            store = stack.enter_context(SQLiteStore(folder))
            sessions[tokens] = stack.enter_context(engine.session(SESSION, store=store))
        yield sessions


def _heard(session: Session, after: Callable[[int, Session], None]) -> Callable[[int], None]:
    return lambda held: after(held, session)


def copy_store(source: Path, target: Path) -> int:
    """Copy the folder of a closed store; its turn files, which never change, become hard links where
    the file system has them. Appears whole or not at all; returns the bytes that were copied."""
    unfinished, copied = target.with_name(f"{target.name}.part"), []

    def link_or_copy(source: str, target: str) -> None:
        if source.endswith(".safetensors"):
            with suppress(OSError):
                os.link(source, target)
                return
        shutil.copy2(source, target)
        copied.append(os.stat(target).st_size)

    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished, copy_function=link_or_copy)
    unfinished.rename(target)
    return sum(copied)
