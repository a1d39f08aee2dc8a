"""Sample text: how it is parted, and whether there is enough of it."""

from __future__ import annotations

from torch import Tensor

from longmem.config import MemoryConfig
from longmem.errors import ConfigError, InputError

HELD_OUT = 0.2
"""Share of the text, at its end, that gates are judged on."""


def split(ids: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """The part to calibrate on, and the part at the end that is held out.

    Args:
        ids: ``[N]`` tokens of the text.
        context: tokens of one context.

    Raises:
        InputError: a part would be shorter than one context.
    """
    needed = round(context / HELD_OUT)
    if len(ids) < needed:
        raise InputError(
            f"the text has {len(ids):,} tokens, but contexts of {context:,} tokens need {needed:,} "
            f"(the last {HELD_OUT:.0%} is held out); give more text, or a shorter context"
        )
    first = len(ids) - round(len(ids) * HELD_OUT)
    return ids[:first], ids[first:]


def check_context(config: MemoryConfig, context: int) -> None:
    """Refuse contexts so short that nothing, or next to nothing, is in memory within them.

    Raises:
        ConfigError: says how many tokens a context needs.
    """
    least = least_context(config)
    if context < least:
        raise ConfigError(
            f"a context of {context:,} tokens is too short: with these settings its memory is of use "
            f"from {least:,} tokens on; give a longer context, or a shorter window"
        )


def least_context(config: MemoryConfig) -> int:
    """Tokens after which a chunk has been folded and some queries can read it."""
    assert config.compressive is not None
    if config.window == "segment":
        return 2 * config.n_local
    reach = config.n_init + config.n_local + config.block_size + config.lookup_span
    dropped = config.compressive.mix == "lse" and (config.topk > 0 or config.lookup == "all")
    kept = (config.max_blocks or 0) * config.block_size if dropped else 0
    return reach + kept + config.compressive.chunk
