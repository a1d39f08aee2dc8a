"""Sample text: how it is parted, and whether there is enough of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from longmem.config import MemoryConfig
from longmem.errors import ConfigError, InputError

HELD_OUT = 0.2
"""Share of the text, at its end, that gates are judged on."""


def split(texts: Sequence[Tensor], context: int) -> tuple[list[Tensor], list[Tensor]]:
    """The part to calibrate on, and the part at the end that is held out: whole texts if there are
    enough of them, else the last one is cut.

    Args:
        texts: each ``[N]`` tokens.
        context: tokens of one context.

    Raises:
        InputError: a part would be shorter than one context.
    """
    total, needed = sum(map(len, texts)), round(context / HELD_OUT)
    if total < needed:
        raise InputError(
            f"the text has {total:,} tokens, but contexts of {context:,} tokens need {needed:,} (the "
            f"last {HELD_OUT:.0%} is held out); give more text, or a shorter context"
        )
    cut, start = total - round(total * HELD_OUT), 0
    first: list[Tensor] = []
    rest = list(texts)
    while start + len(rest[0]) <= cut or (start < cut and len(rest) > 1):
        start += len(rest[0])
        first.append(rest.pop(0))
    if start < cut:
        first.append(rest[0][: cut - start])
        rest[0] = rest[0][cut - start :]
    return first, rest


def contexts(texts: Sequence[Tensor], context: int) -> Iterator[tuple[int, Tensor]]:
    """Each text in pieces of at most `context` tokens, with the tokens before the piece."""
    done = 0
    for text in texts:
        for start in range(0, len(text), context):
            yield done + start, text[start : start + context]
        done += len(text)


def check_context(config: MemoryConfig, texts: Sequence[Tensor], context: int) -> None:
    """Refuse contexts so short that nothing is in memory within them.

    Raises:
        ConfigError: says how many tokens a context needs.
        InputError: says how many tokens a text needs.
    """
    least = least_context(config)
    if context < least:
        raise ConfigError(
            f"a context of {context:,} tokens is too short: with these settings memory is sure to hold "
            f"something after {least:,}; give a longer context, or a shorter window"
        )
    longest = max(map(len, texts), default=0)
    if longest < least:
        raise InputError(
            f"the longest text has {longest:,} tokens, and with these settings memory is sure to hold "
            f"something after {least:,}; give longer texts, or a shorter window"
        )


def least_context(config: MemoryConfig) -> int:
    """Tokens after which a chunk has been folded and can be read."""
    assert config.compressive is not None
    if config.window == "segment":
        return config.n_local + 1
    waiting = config.n_init + config.block_size + config.lookup_span + config.compressive.chunk
    dropped = config.compressive.mix == "lse" and (config.topk > 0 or config.lookup == "all")
    kept = (config.max_blocks or 0) * config.block_size if dropped else 0
    return config.n_local + waiting + kept
