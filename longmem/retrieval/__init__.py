"""Block scorers: which semantic blocks a look-up chooses. One scorer per file."""

from __future__ import annotations

from longmem.errors import ConfigError
from longmem.retrieval.bounds import Bounds
from longmem.retrieval.grouping import group_order
from longmem.retrieval.index_rows import Form, IndexRows
from longmem.retrieval.representative import Representative
from longmem.retrieval.scorer import BlockScorer
from longmem.retrieval.softvote import SoftVote
from longmem.retrieval.sub_block import SubBlock
from longmem.retrieval.summaries import PEAK, best_of, estimate, summarise

__all__ = [
    "PEAK",
    "BlockScorer",
    "Bounds",
    "Form",
    "IndexRows",
    "Representative",
    "SoftVote",
    "SubBlock",
    "best_of",
    "estimate",
    "get_scorer",
    "group_order",
    "register",
    "summarise",
]

_SCORERS: dict[str, BlockScorer] = {}


def register(scorer: BlockScorer) -> None:
    """Make `scorer` available as ``MemoryConfig(scorer=scorer.name)``; a new one replaces an old."""
    _SCORERS[scorer.name] = scorer


def get_scorer(name: str) -> BlockScorer:
    """The scorer of that name.

    Raises:
        ConfigError: there is none.
    """
    try:
        return _SCORERS[name]
    except KeyError:
        known = ", ".join(sorted(_SCORERS))
        raise ConfigError(
            f"no block scorer is called {name!r}; choose one of {known}, or register yours with "
            "longmem.retrieval.register"
        ) from None


register(SoftVote())
register(Representative())
register(Bounds())
register(SubBlock())
