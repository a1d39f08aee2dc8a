"""When the corrected delta rule has stopped counting: its normaliser z no longer grows."""

from __future__ import annotations

import warnings

from longmem.ops.compressive.state import Rule

_LONGEST = 16
"""ARMT's segments; from 32 tokens on the first chunk covers all that follows, with any feature map here."""


def warn_if_fixed(rule: Rule, feature_map: str, chunk: int) -> None:
    """Tell the user of "delta" in settings where z stays that of the first chunk.

    It is no error: such a memory still corrects M, and gates that were made for it fit no other. But
    what is told later is written over what was told before, so that it fails on long streams.

    Args:
        chunk: tokens folded at once.
    """
    if rule == "delta" and (feature_map == "elu" or chunk > _LONGEST):
        warnings.warn(
            f'rule="delta" with feature_map="{feature_map}" and {chunk} tokens folded at once: the first of '
            "them cover all that follows, so the normaliser z stops growing and later tokens "
            'overwrite earlier ones; choose rule="linear", or feature_map="dpfp" with at most '
            f"{_LONGEST} tokens at once",
            stacklevel=3,
        )
