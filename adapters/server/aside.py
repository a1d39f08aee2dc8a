"""Work that takes the server itself a while: done beside the event loop, so that streams go on."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MANY = 256
"""Messages or items that are read at once."""
_THREADS = ThreadPoolExecutor(2, thread_name_prefix="longmem-aside")
"""Few, as they compute; and their own, as others may all be waiting for replies."""


async def aside_if(much: bool, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `call` gives; if it is much work, from a thread, with the context of the task that asks.

    What is little is done at once, and does not wait for what is much.
    """
    if not much:
        return call(*args, **kwargs)
    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_THREADS, lambda: context.run(call, *args, **kwargs))
