"""longmem: unbounded, resumable conversations for any Hugging Face decoder.

Names are imported when first used, because torch and transformers take seconds to load.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longmem.async_reply import AsyncReplyStream
    from longmem.config import MemoryConfig
    from longmem.engine import Engine
    from longmem.errors import (
        ChatFormatError,
        ConfigError,
        CorruptDataError,
        DivergedError,
        FingerprintMismatchError,
        InputError,
        LongMemError,
        SessionClosedError,
        SessionError,
        SessionInUseError,
        SessionNotFoundError,
        StaleWriterError,
        StoreError,
        StoreFormatError,
        StoreFullError,
        StoreLockedError,
        StoreReadOnlyError,
        SystemChangedError,
        TurnTooLargeError,
        UnsupportedModelError,
    )
    from longmem.reply_stream import ReplyStream
    from longmem.sampling import Sampling
    from longmem.session import Session
    from longmem.session_pool import SessionPool
    from longmem.store import Store
    from longmem.types import (
        Recalled,
        Recollection,
        Reply,
        SessionStats,
        Timings,
        Turn,
        Usage,
    )

__version__ = "0.1.0"

__all__ = [
    "AsyncReplyStream",
    "ChatFormatError",
    "ConfigError",
    "CorruptDataError",
    "DivergedError",
    "Engine",
    "FingerprintMismatchError",
    "InputError",
    "LongMemError",
    "MemoryConfig",
    "Recalled",
    "Recollection",
    "Reply",
    "ReplyStream",
    "Sampling",
    "Session",
    "SessionClosedError",
    "SessionError",
    "SessionInUseError",
    "SessionNotFoundError",
    "SessionPool",
    "SessionStats",
    "StaleWriterError",
    "Store",
    "StoreError",
    "StoreFormatError",
    "StoreFullError",
    "StoreLockedError",
    "StoreReadOnlyError",
    "SystemChangedError",
    "Timings",
    "Turn",
    "TurnTooLargeError",
    "UnsupportedModelError",
    "Usage",
]

_MODULES = {
    "async_reply": ("AsyncReplyStream",),
    "config": ("MemoryConfig",),
    "engine": ("Engine",),
    "errors": (
        "ChatFormatError",
        "ConfigError",
        "CorruptDataError",
        "DivergedError",
        "FingerprintMismatchError",
        "InputError",
        "LongMemError",
        "SessionClosedError",
        "SessionError",
        "SessionInUseError",
        "SessionNotFoundError",
        "StaleWriterError",
        "StoreError",
        "StoreFormatError",
        "StoreFullError",
        "StoreLockedError",
        "StoreReadOnlyError",
        "SystemChangedError",
        "TurnTooLargeError",
        "UnsupportedModelError",
    ),
    "reply_stream": ("ReplyStream",),
    "sampling": ("Sampling",),
    "session": ("Session",),
    "session_pool": ("SessionPool",),
    "store": ("Store",),
    "types": (
        "Recalled",
        "Recollection",
        "Reply",
        "SessionStats",
        "Timings",
        "Turn",
        "Usage",
    ),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'longmem' has no attribute {name!r}")
    return getattr(import_module(f"longmem.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
