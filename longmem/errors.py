"""Every error longmem raises, as a tree.

LongMemError
├── ConfigError                 a setting that cannot work (also a ValueError)
│   └── UnsupportedModelError   a model whose state longmem cannot hold
├── InputError                  a turn, role, text or id that is refused (also a ValueError)
│   ├── TurnTooLargeError       a turn above ``max_turn_bytes`` or a system turn above ``max_init``
│   ├── ChatFormatError         a chat template that does not reassemble from its pieces
│   ├── SystemChangedError      a session was begun with another system prompt or other tools
│   └── DivergedError           messages that do not continue the session, with no leave to go back
├── SessionError
│   ├── SessionNotFoundError    no such session (also a KeyError)
│   ├── SessionInUseError       opened twice in one process
│   └── SessionClosedError      used after ``close()``
├── FingerprintMismatchError    stored under another model, tokenizer or memory layout
└── StoreError
    ├── StoreLockedError        another process writes to this store
    ├── StoreFormatError        written by a newer longmem, or no store at all
    ├── StoreReadOnlyError      a write to a store opened with ``read_only=True``
    ├── StoreFullError          a limit of bytes would be exceeded; nothing was written
    ├── StaleWriterError        the session moved on under this writer; nothing was written
    └── CorruptDataError        a file is missing, short, foreign or fails its checksum

Each message says what happened, to which session or file, and what to do next.
"""


class LongMemError(Exception):
    """Base of every error longmem raises on purpose."""


class ConfigError(LongMemError, ValueError):
    """A setting that cannot work with this model."""


class UnsupportedModelError(ConfigError):
    """The model keeps state longmem cannot hold, or rotates keys in an unknown way."""


class InputError(LongMemError, ValueError):
    """A turn, role, text or identifier was refused; nothing was read or stored."""


class TurnTooLargeError(InputError):
    """A turn is larger than the configuration allows."""


class ChatFormatError(InputError):
    """The tokenizer's chat template cannot be rendered turn by turn."""


class SystemChangedError(InputError):
    """The session was begun with another system prompt, or with other tools."""


class DivergedError(InputError):
    """Messages do not continue the session, and neither a fork nor a rollback was asked for."""


class SessionError(LongMemError):
    """A session cannot be opened or used as asked."""


class SessionNotFoundError(SessionError, KeyError):
    """The store holds no session of that id."""

    __str__ = Exception.__str__  # KeyError would print the repr of the message


class SessionInUseError(SessionError):
    """The session is already open in this process."""


class SessionClosedError(SessionError):
    """The session was closed."""


class FingerprintMismatchError(LongMemError):
    """The stored keys and values were computed by another model or memory layout."""


class StoreError(LongMemError):
    """The store cannot do what was asked."""


class StoreLockedError(StoreError):
    """Another process holds the store's writer lock."""


class StoreFormatError(StoreError):
    """The store's format is newer than this longmem, or it is no store."""


class StoreReadOnlyError(StoreError):
    """The store was opened read-only."""


class StoreFullError(StoreError):
    """A limit of bytes (session, owner or store) would be exceeded; nothing was written."""


class StaleWriterError(StoreError):
    """Another writer committed to or took over the session; nothing was written."""


class CorruptDataError(StoreError):
    """Stored data is missing, short, foreign or fails its checksum."""
