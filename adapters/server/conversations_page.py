"""Pages of lists, as OpenAI's clients turn them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import Query

from longmem.adapters.server.errors import ApiError

After = Annotated[str | None, Query(description="id of the item before the first of the page")]
Limit = Annotated[int, Query(ge=1, le=100, description="most items on the page")]
Order = Annotated[Literal["asc", "desc"], Query(description="oldest or newest first")]


def page(items: Iterable[Mapping[str, Any]], *, after: str | None, limit: int) -> dict[str, Any]:
    """One page; of `items` no more is taken than it needs.

    Args:
        items: all of them in the order of the pages, each with an ``id``.
        after: id of the item before the first of the page; None: from the start.
        limit: most items on it.

    Raises:
        ApiError: 400, there is no item `after`.
    """
    rest = iter(items)
    if after is not None and not any(item["id"] == after for item in rest):
        raise ApiError(400, "invalid_value", f"after: there is no item {after!r} here", "after")
    found = list(islice(rest, limit + 1))
    return whole(found[:limit]) | {"has_more": len(found) > limit}


def whole(items: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """All of a list on one page."""
    shown = list(items)
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": False,
    }
