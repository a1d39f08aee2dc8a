"""Where the blocks of a session's look-ups were found, over all its layers."""

from __future__ import annotations

from longmem.memory import SessionMemory
from longmem.types import TierStats


def tier_stats(memory: SessionMemory | None, bytes_disk: int) -> dict[str, TierStats]:
    """The figures of "device", "host" and "disk".

    Args:
        memory: of the session; None before its first turn.
        bytes_disk: bytes of its files.
    """
    tiers = [layer.tier for layer in memory.full_layers] if memory else []
    counts = [tier.counts for tier in tiers]
    on_disk = sum(each.disk for each in counts)
    return {
        "device": TierStats(
            hits=sum(each.device for each in counts),
            misses=sum(each.no_slot for each in counts),
            bytes=sum(tier.slab_bytes for tier in tiers),
        ),
        "host": TierStats(
            hits=sum(each.host for each in counts),
            misses=on_disk,
            bytes=sum(tier.bytes for tier in tiers),
        ),
        "disk": TierStats(
            hits=on_disk,
            bytes=bytes_disk,
            bytes_read=sum(each.bytes_read for each in counts),
            ahead=sum(each.ahead for each in counts),
        ),
    }
