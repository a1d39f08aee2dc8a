"""Tell a session two things, close it, and go on with it in a new engine.

    python examples/quickstart.py [FOLDER]

FOLDER is where the store is kept; default: a temporary one.
"""

from __future__ import annotations

import sys
import tempfile

from longmem import Engine
from longmem.stores import SQLiteStore


def first_day(folder: str) -> None:
    """Two facts and a question; everything is durable when the session closes."""
    engine = Engine.nano()
    with SQLiteStore(folder) as store, engine.session("alice", store=store) as session:
        for text in ("My locker code is 482913.", "Bob's home town is Bergen."):
            print(f"> {text}\n{session.ask(text).text}")


def next_day(folder: str) -> None:
    """The same conversation, from the store alone."""
    engine = Engine.nano()
    with SQLiteStore(folder) as store, engine.session("alice", store=store) as session:
        for piece in session.stream("What is my locker code?"):
            print(piece, end="", flush=True)
        reply = session.ask("What is Bob's home town?", commit=False)
        print(f"\n{reply.text}")
        print(f"{reply.usage.from_memory} tokens from memory, {reply.usage.read} read")


def main() -> None:
    """Both days."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = sys.argv[1] if len(sys.argv) > 1 else f"{temporary}/chats"
        first_day(folder)
        print("-- the next day --")
        next_day(folder)


if __name__ == "__main__":
    main()
