"""What a caller wants kept with a reply, durable in the same commit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from longmem.errors import InputError
from longmem.types import Reply

if TYPE_CHECKING:
    from longmem.store import Record

Finish = Callable[[Reply], Mapping[str, Any]]
"""Called with the whole reply before the commit; what it gives is kept with the reply's turn."""
MakeRecords = Callable[[Reply], "Sequence[Record]"]
"""Called with the whole reply before the commit; the records become durable with the exchange."""


@dataclass(frozen=True)
class Keeping:
    """Details and records of one exchange. The functions are called once, on the thread that commits
    (the one that takes the last piece); what they raise drops the exchange.

    Args:
        extra: JSON-able details of the reply's turn.
        finish: gives more of them, which win.
        records: gives records to store.
    """

    extra: Mapping[str, Any] = field(default_factory=dict)
    finish: Finish | None = None
    records: MakeRecords | None = None

    @property
    def wanted(self) -> bool:
        """Whether there is anything to keep."""
        return bool(self.extra or self.finish or self.records)

    def details(self, reply: Reply) -> dict[str, Any]:
        """What is kept with the reply's turn.

        Raises:
            InputError: `finish` gave something that is not JSON-able.
        """
        made = check_extra(self.finish(reply)) if self.finish is not None else {}
        return {**self.extra, **made}

    def made_records(self, reply: Reply) -> Sequence[Record]:
        """The records to store."""
        return tuple(self.records(reply)) if self.records is not None else ()


def check_extra(extra: Any) -> dict[str, Any]:
    """Details of a turn, as a new dictionary.

    Raises:
        InputError: it is no mapping, or cannot be written as JSON.
    """
    if not isinstance(extra, Mapping) or not all(isinstance(key, str) for key in extra):
        raise InputError(f"extra is a mapping with names as keys, not {extra!r}")
    try:
        json.dumps(dict(extra), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"extra cannot be kept, it is not JSON-able: {error}; give strings, numbers, lists and "
            "dictionaries"
        ) from error
    return dict(extra)
