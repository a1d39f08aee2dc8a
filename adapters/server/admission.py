"""Who comes in: key, host name, limits. Runs before the body is read and a route is looked for."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from longmem.adapters.server.errors import ApiError
from longmem.adapters.server.keys import Keys
from longmem.adapters.server.settings import Settings
from longmem.adapters.server.traffic import Traffic

_OPEN = ("/health",)
"""Paths that need no key and are never refused."""
_UNCOUNTED = ("/health/ready", "/metrics")
"""Paths that are answered while draining, and count against no limit."""
_LOCAL = {"localhost", "127.0.0.1", "[::1]"}
_CROSS_SITE = "cross-site"
"""What browsers say in Sec-Fetch-Site of a request that another site's page makes."""


class Admission:
    """Middleware that tells the routes whose request it is, or answers in their place.

    Args:
        app: what comes next.
        settings: keys and limits.
        traffic: counts the requests.
    """

    def __init__(self, app: ASGIApp, settings: Settings, traffic: Traffic) -> None:
        self._app, self._settings, self._traffic = app, settings, traffic
        self._keys = Keys(settings.keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _OPEN:
            await self._app(scope, receive, send)
            return
        try:
            owner = self._admit(Headers(scope=scope))
            counted = scope["path"] not in _UNCOUNTED
            if counted:
                self._traffic.enter(owner, self._settings.max_concurrent, self._settings.rate)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        scope.setdefault("state", {})["owner"] = owner
        try:
            await self._app(scope, receive, send)
        finally:
            if counted:
                self._traffic.leave(owner)

    def _admit(self, headers: Headers) -> str | None:
        """The owner.

        Raises:
            ApiError: 401; or 403 where no key is asked for and `_check_local` refuses.
        """
        if not self._settings.keys:
            _check_local(headers)
        return self._keys.owner(headers.get("authorization"))


def _check_local(headers: Headers) -> None:
    """Keep web pages out. A key would; without one a browser on this machine is let in like any client.

    A page that had its own name point here gives that name as Host. A page of another site gives itself
    as Origin, and "simple" requests, which change things as well, reach a server before it is asked.

    Raises:
        ApiError: 403.
    """
    if _name(headers.get("host", "")) not in _LOCAL:
        raise ApiError(
            403,
            "host_refused",
            "a server without API keys answers to localhost, 127.0.0.1 and [::1] alone; use one "
            "of them, or start it with an API key",
        )
    origins = headers.getlist("origin")
    if headers.get("sec-fetch-site") == _CROSS_SITE or not all(map(_is_local, origins)):
        raise ApiError(
            403,
            "origin_refused",
            "a server without API keys takes no requests from web pages of other sites; open the "
            "page from localhost, or start the server with an API key",
        )


def _is_local(origin: str) -> bool:
    """Whether a page of this origin came from this machine; "null" and what is no URL did not."""
    try:
        found = urlsplit(origin)
        host = found.hostname or ""
    except ValueError:
        return False
    name = f"[{host}]" if ":" in host else host
    return found.scheme in ("http", "https") and name in _LOCAL


def _name(host: str) -> str:
    """A Host header without its port."""
    return (host.rsplit(":", 1)[0] if not host.endswith("]") else host).lower()
