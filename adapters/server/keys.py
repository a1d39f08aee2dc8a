"""Who a request comes from: its API key, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from longmem.adapters.server.errors import ApiError
from longmem.adapters.server.settings import ApiKey

_HEADERS = {"www-authenticate": "Bearer"}


class Keys:
    """The keys of all owners.

    Args:
        keys: any number; without one everybody is let in, as owner None.
    """

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._digests = [(_digest(each.key), each.owner) for each in keys]

    def owner(self, authorization: str | None) -> str | None:
        """Whose key the header ``Authorization: Bearer KEY`` holds; None where none is asked for.

        Every key is compared, in full: how long it takes says nothing about any of them.

        Raises:
            ApiError: 401.
        """
        if not self._digests:
            return None
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise ApiError(
                401,
                "missing_api_key",
                "no API key was given; send it as Authorization: Bearer KEY",
                headers=_HEADERS,
            )
        given, found = _digest(key.strip()), None
        for digest, owner in self._digests:
            if hmac.compare_digest(given, digest):
                found = owner
        if found is None:
            raise ApiError(
                401, "invalid_api_key", "this API key is not known here", headers=_HEADERS
            )
        return found


def _digest(key: str) -> bytes:
    """Of equal length for all keys, so that a comparison does not tell theirs."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
