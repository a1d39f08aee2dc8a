"""Refresh policies: at which steps of a reply blocks are looked up again. One policy per file."""

from __future__ import annotations

from longmem.errors import ConfigError
from longmem.recycling.budget import ByteBudget
from longmem.recycling.costs import LookupCosts, costs_of
from longmem.recycling.dynamic import QuerySimilarity
from longmem.recycling.fixed import FixedStride
from longmem.recycling.policy import MakePolicy, RefreshPolicy
from longmem.recycling.reply_lookups import ReplyLookups

__all__ = [
    "ByteBudget",
    "FixedStride",
    "LookupCosts",
    "MakePolicy",
    "QuerySimilarity",
    "RefreshPolicy",
    "ReplyLookups",
    "costs_of",
    "get_policy",
    "register",
]

_POLICIES: dict[str, MakePolicy] = {}


def register(name: str, make: MakePolicy) -> None:
    """Make a policy available as ``MemoryConfig(recycling=name)``; a new one replaces an old.

    Args:
        make: called once per reply; policies keep nothing from one reply to the next.
    """
    _POLICIES[name] = make


def get_policy(name: str) -> MakePolicy:
    """What makes the policy of that name.

    Raises:
        ConfigError: there is none.
    """
    try:
        return _POLICIES[name]
    except KeyError:
        known = ", ".join(sorted(_POLICIES))
        raise ConfigError(
            f"no refresh policy is called {name!r}; choose one of {known}, or register yours with "
            "longmem.recycling.register"
        ) from None


register("fixed", FixedStride)
register("dynamic", QuerySimilarity)
register("budget", ByteBudget)
