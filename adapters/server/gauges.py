"""Figures that are looked up when somebody asks: sessions in memory, tiers, the store, the engine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from longmem.adapters.server.traffic import Traffic

if TYPE_CHECKING:
    from longmem.dialogue import Dialogue
    from longmem.store import Store
    from longmem.types import TierStats

_STORE_SECONDS = 5.0
"""The store is asked no more often than this; listing many sessions takes time."""


class StateCollector(Collector):
    """Collects the state of a dialogue's pool, store and engine.

    Args:
        dialogue: the dialogue.
        traffic: requests under way.
    """

    def __init__(self, dialogue: Dialogue, traffic: Traffic) -> None:
        self._dialogue, self._traffic = dialogue, traffic
        self._stored: tuple[float, int, int] = (-_STORE_SECONDS, 0, 0)

    def collect(self) -> Iterator[Metric]:
        """All of it, now."""
        yield _gauge("http_requests_running", "HTTP requests under way", self._traffic.running)
        if self._dialogue.store is not None:
            yield from self._pool()
            yield from self._sessions(self._dialogue.store)
        engine = self._dialogue.engine
        yield _counter("engine_tokens_read", "Tokens fed to the model", engine.tokens_read)
        passes, feeds = engine.scheduler.passes, engine.scheduler.feeds
        yield _counter("engine_passes", "Forward passes", passes)
        yield _counter("engine_feeds", "What sessions had read in them", feeds)

    def describe(self) -> list[Metric]:
        """Nothing beforehand: a look at the store is not for the time of registration."""
        return []

    def _pool(self) -> Iterator[Metric]:
        stats = self._dialogue.pool.stats()
        yield _gauge("sessions_resident", "Sessions held in memory", len(stats.resident))
        yield _gauge("sessions_leased", "Of them, those in use", len(stats.leased))
        yield _counter("sessions_opened", "Sessions opened or resumed", stats.opened)
        yield _counter("sessions_parked", "Sessions parked", stats.parked)
        seconds, restored = stats.restore_seconds, stats.restore_bytes
        yield _counter("session_restore_seconds", "Seconds spent resuming sessions", seconds)
        yield _counter("session_restore_bytes", "Bytes in memory of sessions resumed", restored)
        held = GaugeMetricFamily(
            "longmem_session_bytes", "Bytes of resident sessions", labels=["place"]
        )
        held.add_metric(["device"], stats.bytes_device)
        held.add_metric(["host"], stats.bytes_host)
        yield held
        yield from _tiers(stats.tiers)

    def _sessions(self, store: Store) -> Iterator[Metric]:
        at, count, size = self._stored
        if time.monotonic() - at >= _STORE_SECONDS:
            infos = store.sessions()
            count, size = len(infos), sum(info.bytes for info in infos)
            self._stored = time.monotonic(), count, size
        yield _gauge("sessions_stored", "Sessions in the store", count)
        yield _gauge("store_bytes", "Bytes of their files", size)


def _tiers(tiers: Mapping[str, TierStats]) -> Iterator[Metric]:
    """Where the blocks of look-ups were found."""
    hits = CounterMetricFamily("longmem_block_hits", "Blocks found in a tier", labels=["tier"])
    misses = CounterMetricFamily("longmem_block_misses", "Blocks not found", labels=["tier"])
    read = CounterMetricFamily(
        "longmem_block_read_bytes", "Bytes read by look-ups", labels=["tier"]
    )
    rates = GaugeMetricFamily("longmem_block_hit_rate", "Share of blocks found", labels=["tier"])
    for tier, stats in tiers.items():
        hits.add_metric([tier], stats.hits)
        misses.add_metric([tier], stats.misses)
        read.add_metric([tier], stats.bytes_read)
        if stats.hit_rate is not None:
            rates.add_metric([tier], stats.hit_rate)
    yield from (hits, misses, read, rates)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"longmem_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"longmem_{name}", text, value=value)
