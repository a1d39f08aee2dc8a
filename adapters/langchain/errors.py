"""longmem's errors as LangChain's: each is still what it was, and a `ModelError` too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core.exceptions import ContextOverflowError, ModelError, ModelInvalidRequestError

from longmem.errors import (
    ConfigError,
    InputError,
    LongMemError,
    SessionInUseError,
    SessionNotFoundError,
    TurnTooLargeError,
)


class SessionConflictError(ModelError):
    """The session is being written by another call; the same call may succeed a moment later."""

    is_retryable = True


_KINDS: tuple[tuple[type[LongMemError], type[ModelError]], ...] = (
    (TurnTooLargeError, ContextOverflowError),
    (InputError, ModelInvalidRequestError),
    (ConfigError, ModelInvalidRequestError),
    (SessionNotFoundError, ModelInvalidRequestError),
    (SessionInUseError, SessionConflictError),
    (LongMemError, ModelError),
)
"""The first that fits counts."""
_MIXED: dict[type[LongMemError], type[LongMemError]] = {}


@contextmanager
def as_model_errors() -> Iterator[None]:
    """Raise longmem's errors as LangChain's, too: ``except InputError`` and ``except
    ModelInvalidRequestError`` both catch a refused message."""
    try:
        yield
    except LongMemError as error:
        if isinstance(error, ModelError):
            raise
        mixed = _mixed(type(error))
        raised = mixed.__new__(mixed, *error.args)
        raised.__dict__.update(error.__dict__)
        raise raised from error


def _mixed(kind: type[LongMemError]) -> type[LongMemError]:
    if kind not in _MIXED:
        model_error = next(theirs for ours, theirs in _KINDS if issubclass(kind, ours))
        body = {"__module__": kind.__module__, "__doc__": kind.__doc__, "__str__": kind.__str__}
        _MIXED[kind] = type(kind.__name__, (kind, model_error), body)
    return _MIXED[kind]
