"""What `/metrics` tells: read from the parts when it is asked for, in a registry of this agent's own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edgecdn_agent.traffic import Traffic

__all__ = ["Gauges", "LoopLag", "Metrics"]

_LAG_EVERY_S = 0.25
_LAG_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


@dataclass(frozen=True, slots=True)
class Gauges:
    """Numbers of the moment, each asked for when `/metrics` is read."""

    peers: Callable[[], int]
    jobs: Callable[[], int]
    repos: Callable[[], int]
    blobs: Callable[[], int]
    bytes_held: Callable[[], int]


class LoopLag:
    """A service: how late the event loop wakes it, as histogram and as the worst so far (seconds)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.worst_s = 0.0
        self._lag = Histogram(
            "edgecdn_loop_lag_seconds", "How late the event loop is", registry=registry, buckets=_LAG_BUCKETS_S
        )
        self._worst = Gauge("edgecdn_loop_lag_worst_seconds", "The latest it ever was", registry=registry)

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            began = time.monotonic()
            await asyncio.sleep(_LAG_EVERY_S)
            late_s = max(0.0, time.monotonic() - began - _LAG_EVERY_S)
            self._lag.observe(late_s)
            if late_s > self.worst_s:
                self.worst_s = late_s
                self._worst.set(late_s)


class Metrics(Collector):
    """Everything the agent counts; `text` is the answer to a scrape."""

    def __init__(self, traffic: Traffic, gauges: Gauges) -> None:
        self.registry = CollectorRegistry()
        self.loop_lag = LoopLag(self.registry)
        self._traffic = traffic
        self._gauges = gauges
        self.registry.register(self)

    def text(self) -> bytes:
        """In the text format of Prometheus, version 0.0.4."""
        return generate_latest(self.registry)

    def collect(self) -> Iterable[Metric]:
        came = CounterMetricFamily("edgecdn_received_bytes", "Bytes received, by kind of source", labels=["kind"])
        for kind, count in self._traffic.totals().in_by_source.items():
            came.add_metric([kind], count)
        yield came
        yield CounterMetricFamily("edgecdn_sent_bytes", "Bytes given to peers", value=self._traffic.out_lan)
        for name, help_, value in (
            ("edgecdn_peers", "Agents known", self._gauges.peers()),
            ("edgecdn_jobs", "Fetches that run", self._gauges.jobs()),
            ("edgecdn_held_repos", "Repos held verified", self._gauges.repos()),
            ("edgecdn_held_blobs", "Files held verified", self._gauges.blobs()),
            ("edgecdn_held_bytes", "Bytes held verified", self._gauges.bytes_held()),
        ):
            yield GaugeMetricFamily(name, help_, value=value)
