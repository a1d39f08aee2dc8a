"""LangChain's chat model interface over a memory: each call sends the new message alone.

    pip install 'longmem[langchain]'
    python examples/langchain_chat.py [FOLDER]

FOLDER is where the store is kept; default: a temporary one.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import closing
from typing import Literal

from pydantic import BaseModel

from longmem import Engine
from longmem.adapters.langchain import ChatLongMem
from longmem.stores import SQLiteStore


class Home(BaseModel):
    """Where somebody lives."""

    town: Literal["Bergen", "Lisbon", "Osaka"]


def first_day(engine: Engine, store: SQLiteStore) -> None:
    """Two facts, in the session that the config's thread_id names, as LangChain's runnables do."""
    with closing(ChatLongMem(engine=engine, store=store)) as chat:
        config = {"configurable": {"thread_id": "alice"}}
        for text in ("My locker code is 482913.", "Bob's home town is Bergen."):
            print(f"> {text}\n{chat.invoke(text, config).text}")


def next_day(engine: Engine, store: SQLiteStore) -> None:
    """The same conversation: streamed, counted, and as an object that fits a schema."""
    with closing(ChatLongMem(engine=engine, store=store, session="alice")) as chat:
        for chunk in chat.stream("What is my locker code?"):
            print(chunk.text, end="", flush=True)
        usage = chat.invoke("What is Bob's home town?").usage_metadata
        cached = usage["input_token_details"]["cache_read"]
        print(f"\n{usage['input_tokens'] - cached} tokens read, {cached} from memory")
        print(chat.with_structured_output(Home).invoke("What is Bob's home town?"))


def main() -> None:
    """Both days."""
    engine = Engine.nano()
    with tempfile.TemporaryDirectory() as temporary:
        folder = sys.argv[1] if len(sys.argv) > 1 else f"{temporary}/chats"
        for day in (first_day, next_day):
            with SQLiteStore(folder) as store:
                day(engine, store)
            print("--")


if __name__ == "__main__":
    main()
