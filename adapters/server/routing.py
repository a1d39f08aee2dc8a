"""Routers whose bodies are strict JSON, and whose errors are in the API's description."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

_DEEPEST = 100
"""Levels of nesting; what is deeper only serves to exhaust the stack of whoever reads it."""


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str


class ErrorEnvelope(BaseModel):
    """OpenAI's form of an error."""

    error: ErrorDetail = Field(description="What went wrong, to which part, and what to do next.")


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorEnvelope, "description": text}
    for status, text in {
        400: "The request is refused",
        401: "No valid API key",
        404: "There is no such thing, or it is another owner's",
        408: "The body did not come",
        409: "The session is being written, or does not fit",
        413: "The request is too large",
        429: "Too many requests",
        503: "Shutting down",
    }.items()
}


def new_router(**options: Any) -> APIRouter:
    """A router for JSON bodies: NaN, half surrogates and bottomless nesting are no JSON for it."""
    return APIRouter(route_class=_JsonRoute, responses=_ERRORS, **options)


class _JsonRequest(Request):
    """A request whose `json` takes what the standard allows, and no more."""

    async def json(self) -> Any:
        return strict_json(await self.body())


class _JsonRoute(APIRoute):
    """A route that reads its body with `strict_json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_JsonRequest(request.scope, request.receive))

        return handle


def strict_json(body: bytes) -> Any:
    """A JSON document.

    Raises:
        json.JSONDecodeError: it is none, holds NaN or infinity, half of a surrogate pair or a number
            of thousands of digits, or is nested more than a hundred levels deep.
    """
    try:
        text = body.decode("utf-8")
        value = json.loads(text, parse_constant=_refuse)
        if _depth(value) > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} levels deep")
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError:
        raise
    except UnicodeError:
        raise json.JSONDecodeError("not UTF-8, or half of a surrogate pair", "", 0) from None
    except RecursionError:
        raise json.JSONDecodeError(f"more than {_DEEPEST} levels deep", "", 0) from None
    except ValueError as error:
        raise json.JSONDecodeError(str(error), "", 0) from None
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _depth(value: Any) -> int:
    """Levels of lists and objects."""
    depth, level = 0, [value]
    while level := [inner for outer in level for inner in _inside(outer)]:
        depth += 1
        if depth > _DEEPEST:
            break
    return depth


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
