"""What a `SessionPool` holds in memory, and what it counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from longmem.errors import SessionError
from longmem.types import TierStats

if TYPE_CHECKING:
    from longmem.session import Session


@dataclass(eq=False)
class Resident:
    """A session that is held in memory. While it is opened or parked it is `moving`."""

    session: Session | None = None
    leases: int = 1
    moving: bool = True
    bytes_device: int = 0
    bytes_host: int = 0
    tiers: Mapping[str, TierStats] = field(default_factory=dict)
    left_at: float = 0.0

    @property
    def gone(self) -> bool:
        """Whether somebody who leased it closed it."""
        return self.session is not None and self.session.closed

    def measure(self) -> bool:
        """Count the session's bytes and look-ups; False if it was closed."""
        try:
            stats = self.session.stats() if self.session else None
        except SessionError:
            return False
        if stats is not None:
            self.bytes_device, self.bytes_host = stats.bytes_device, stats.bytes_host
            self.tiers = stats.tiers
        return stats is not None


@dataclass(frozen=True)
class PoolStats:
    """What a pool holds and did.

    Args:
        resident: ids of the sessions in memory; those that were left longest ago first.
        leased: ids of those in use.
        bytes_device, bytes_host: of all of them, as `SessionStats` counts them.
        opened, parked: how often a session was opened, and parked.
        restore_seconds: wall clock of opening sessions that had turns, all together.
        restore_bytes: what those held on the device and in host memory when they were open.
        tiers: where the blocks of look-ups were found since the pool began, by tier; `bytes` are
            those of the sessions in memory alone. Counted when a session is left.
    """

    resident: tuple[str, ...]
    leased: tuple[str, ...]
    bytes_device: int
    bytes_host: int
    opened: int
    parked: int
    restore_seconds: float = 0.0
    restore_bytes: int = 0
    tiers: Mapping[str, TierStats] = field(default_factory=dict)


@dataclass
class Counts:
    """What a pool did so far; `tiers` are of sessions that it holds no more."""

    opened: int = 0
    parked: int = 0
    restore_seconds: float = 0.0
    restore_bytes: int = 0
    tiers: Mapping[str, TierStats] = field(default_factory=dict)

    def restored(self, resident: Resident, seconds: float) -> None:
        """A session was opened."""
        self.opened += 1
        if resident.measure() and resident.session is not None and resident.session.n_turns:
            self.restore_seconds += seconds
            self.restore_bytes += resident.bytes_device + resident.bytes_host

    def left(self, resident: Resident) -> None:
        """A session is held no more; what it counted stays."""
        past = {name: replace(tier, bytes=0) for name, tier in resident.tiers.items()}
        self.tiers = total_tiers([self.tiers, past])

    def stats(self, held: Iterable[tuple[str, Resident]]) -> PoolStats:
        """The figures of a pool that holds these sessions."""
        held = list(held)
        return PoolStats(
            resident=tuple(id for id, _ in held),
            leased=tuple(id for id, each in held if each.leases),
            bytes_device=sum(each.bytes_device for _, each in held),
            bytes_host=sum(each.bytes_host for _, each in held),
            opened=self.opened,
            parked=self.parked,
            restore_seconds=self.restore_seconds,
            restore_bytes=self.restore_bytes,
            tiers=total_tiers([self.tiers, *(each.tiers for _, each in held)]),
        )


def total_tiers(parts: Iterable[Mapping[str, TierStats]]) -> dict[str, TierStats]:
    """The sums of several sessions' figures, tier by tier."""
    total: dict[str, TierStats] = {}
    for part in parts:
        for name, tier in part.items():
            so_far = total.get(name, TierStats())
            total[name] = TierStats(
                hits=so_far.hits + tier.hits,
                misses=so_far.misses + tier.misses,
                bytes=so_far.bytes + tier.bytes,
                bytes_read=so_far.bytes_read + tier.bytes_read,
                ahead=so_far.ahead + tier.ahead,
            )
    return total
