"""What clients are told when something is refused: OpenAI's envelope, with a string code always.

{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from longmem.errors import (
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
    StoreFullError,
    SystemChangedError,
    TurnTooLargeError,
)

RETRY_MS = 250
"""After how many milliseconds a client should come again that met a busy session."""
AGAIN = {"retry-after-ms": str(RETRY_MS), "retry-after": "1", "x-should-retry": "true"}
NEVER = {"x-should-retry": "false"}

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
_FRAMEWORK_CODES = {
    400: "invalid_body",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_many_values",
}
_VALIDATION_CODES = {
    "missing": "missing_required_parameter",
    "json_invalid": "invalid_json",
    "extra_forbidden": "unknown_parameter",
}


class ApiError(Exception):
    """A request is refused, or failed.

    Args:
        status: of the response.
        code: a word for programs, like "session_not_found".
        message: what happened and what to do next.
        param: which part of the request is meant, like "messages[0].content".
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = dict(headers or {})

    @property
    def envelope(self) -> dict[str, Any]:
        """``{"error": {...}}``."""
        kind = _TYPES.get(self.status)
        kind = kind or ("invalid_request_error" if self.status < 500 else "server_error")
        inside = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": inside}

    def response(self) -> JSONResponse:
        """As an HTTP response."""
        return JSONResponse(self.envelope, self.status, self.headers)


def unsupported(param: str, message: str) -> ApiError:
    """A part of OpenAI's dialect that longmem does not have."""
    return ApiError(400, "unsupported_parameter", message, param)


_KNOWN: tuple[tuple[type[LongMemError], int, str, Mapping[str, str]], ...] = (
    (SessionNotFoundError, 404, "session_not_found", {}),
    (SessionInUseError, 409, "session_in_use", AGAIN),
    (StaleWriterError, 409, "session_moved_on", AGAIN),
    (SessionClosedError, 503, "session_closed", AGAIN),
    (SessionError, 409, "session_error", NEVER),
    (FingerprintMismatchError, 409, "session_of_another_model", NEVER),
    (SystemChangedError, 409, "system_prompt_changed", NEVER),
    (DivergedError, 409, "diverged", NEVER),
    (TurnTooLargeError, 413, "turn_too_large", {}),
    (InputError, 400, "invalid_input", {}),
    (StoreFullError, 507, "store_full", NEVER),
    (CorruptDataError, 500, "corrupt_data", NEVER),
)
"""The first that fits counts."""


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of any exception; of a bug no more than that there is one."""
    if isinstance(error, ApiError):
        return error
    for kind, status, code, headers in _KNOWN:
        if isinstance(error, kind):
            return ApiError(status, code, str(error), headers=headers)
    if isinstance(error, LongMemError) and isinstance(error, ValueError):
        return ApiError(400, "invalid_value", str(error))
    if isinstance(error, LongMemError):
        return ApiError(500, "server_error", str(error), headers=NEVER)
    return ApiError(500, "internal_error", "something went wrong here; the server's log has it")


def framework_error(status: int, detail: str, headers: Mapping[str, str] | None) -> ApiError:
    """An error that the framework raised: no such route, a wrong method, a body that is none."""
    code = _FRAMEWORK_CODES.get(status, "server_error" if status >= 500 else "invalid_request")
    return ApiError(status, code, detail, headers=headers)


def validation_error(error: RequestValidationError) -> ApiError:
    """A request whose parts are missing or of the wrong type: one of its problems.

    Where a value may be of several types, each tells that it is not that one; what is wrong with it as
    the type it is, or further inside, says more.
    """
    found = error.errors()
    same = [each for each in found if each["loc"][:2] == found[0]["loc"][:2]]
    first = max(same, key=lambda each: (not each["type"].endswith("_type"), len(each["loc"])))
    source, *place = first["loc"]
    if source == "body":
        place = _named(place, error.body, missing=first["type"] == "missing")
    code = _VALIDATION_CODES.get(first["type"], "invalid_value")
    if code == "invalid_json":
        return ApiError(400, code, f"the body is no JSON: {first['ctx']['error']}")
    param = _path(place) or None
    return ApiError(400, code, f"{param or 'the body'}: {first['msg']}", param)


def _named(place: list[Any], body: Any, *, missing: bool) -> list[Any]:
    """The parts of a place that stand in the body; between them are names of types that were tried."""
    kept: list[Any] = []
    for i, part in enumerate(place):
        there = (
            part in body if isinstance(body, dict) else isinstance(body, list) and part != str(part)
        )
        if there:
            body = body[part]
        if there or (missing and i == len(place) - 1):
            kept.append(part)
    return kept


def _path(place: list[Any]) -> str:
    path = ""
    for part in place:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path
