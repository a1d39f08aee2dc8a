"""What /metrics shows: vLLM's names with the prefix ``longmem_``, and what longmem has of its own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from longmem.adapters.server.gauges import StateCollector
from longmem.adapters.server.traffic import Traffic

if TYPE_CHECKING:
    from longmem.dialogue import Dialogue, Outcome

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576)


class Metrics:
    """The figures of one application, in a registry of their own.

    Args:
        dialogue: whose sessions and store are looked at when somebody asks.
        traffic: requests under way.
    """

    def __init__(self, dialogue: Dialogue, traffic: Traffic) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(StateCollector(dialogue, traffic))
        self.running = self._gauge("num_requests_running", "Replies being read for or decoded")
        self.waiting = self._gauge("num_requests_waiting", "Replies whose session is being opened")
        self.success = self._counter("request_success", "Replies given", "finished_reason")
        self.failure = self._counter("request_failure", "Replies that failed", "code")
        self.prompt = self._counter("prompt_tokens", "Tokens in front of replies, history included")
        self.generation = self._counter("generation_tokens", "Tokens sampled")
        self.queries = self._counter("prefix_cache_queries", "Tokens in front of replies")
        self.hits = self._counter("prefix_cache_hits", "Of them, those memory held already")
        self.lookups = self._counter("lookups", "Look-ups of layers")
        self.lookups_saved = self._counter("lookups_saved", "Look-ups recycled steps did without")
        self.first_token = self._seconds("time_to_first_token", "Until a reply's first token")
        self.between = self._seconds("inter_token_latency", "Per token of a reply, on average")
        self.whole = self._seconds("e2e_request_latency", "Of an exchange, from start to commit")
        self.commit = self._seconds("commit", "Until an exchange was durable")
        self.read = self._tokens("request_prompt_tokens", "Tokens read for a reply")
        self.sampled = self._tokens("request_generation_tokens", "Tokens sampled for a reply")

    def exchange(self) -> Measured:
        """An exchange begins."""
        return Measured(self)

    def text(self) -> bytes:
        """All figures in the text format of Prometheus. Asks the store: not for the event loop."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"longmem_{name}", text, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"longmem_{name}", text, labels, registry=self.registry)

    def _seconds(self, name: str, text: str) -> Histogram:
        full = f"longmem_{name}_seconds"
        return Histogram(full, f"Seconds: {text}", buckets=_SECONDS, registry=self.registry)

    def _tokens(self, name: str, text: str) -> Histogram:
        return Histogram(f"longmem_{name}", text, buckets=_TOKENS, registry=self.registry)


class Measured:
    """One exchange, as it is counted.

    Args:
        metrics: where.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._began = metrics, time.perf_counter()
        self._waited: float | None = None
        metrics.waiting.inc()

    def entered(self) -> None:
        """Its session is open."""
        self._waited = time.perf_counter() - self._began
        self._metrics.waiting.dec()
        self._metrics.running.inc()

    def done(self, outcome: Outcome) -> None:
        """It is committed."""
        self._leave()
        to = self._metrics
        to.success.labels(outcome.finish_reason).inc()
        to.whole.observe(time.perf_counter() - self._began)
        if not outcome.repeated:
            self._count(outcome)

    def failed(self, code: str) -> None:
        """It failed, or was dropped."""
        self._leave()
        self._metrics.failure.labels(code).inc()

    def _leave(self) -> None:
        (self._metrics.waiting if self._waited is None else self._metrics.running).dec()

    def _count(self, outcome: Outcome) -> None:
        to, usage, timings = self._metrics, outcome.reply.usage, outcome.reply.timings
        for counter, value in (
            (to.prompt, outcome.read + outcome.from_memory),
            (to.queries, outcome.read + outcome.from_memory),
            (to.hits, outcome.from_memory),
            (to.generation, usage.generated),
            (to.lookups, usage.lookups),
            (to.lookups_saved, usage.lookups_saved),
        ):
            counter.inc(value)
        to.first_token.observe((self._waited or 0.0) + timings.first_token)
        if usage.generated > 1:
            to.between.observe(timings.decode / (usage.generated - 1))
        if outcome.session is not None:
            to.commit.observe(timings.commit)
        to.read.observe(outcome.read)
        to.sampled.observe(usage.generated)
