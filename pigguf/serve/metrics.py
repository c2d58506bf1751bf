"""Metrics in Prometheus's format: counts and times, never text of a prompt or an answer.

The only module that imports prometheus_client.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pigguf.serve.model_host import ModelHost

_SECONDS_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)


class ServerMetrics:
    """The metrics of one server since its start."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, host: ModelHost) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_HostCollector(host))
        self._requests = Counter(
            "pigguf_requests", "Requests answered.", ["path", "status"], registry=self._registry
        )
        self._first_token = Histogram(
            "pigguf_first_token_seconds",
            "Time from a request to the first token of its answer.",
            registry=self._registry,
            buckets=_SECONDS_BUCKETS,
        )

    def count_request(self, path: str, status: int) -> None:
        """Count an answered request."""
        self._requests.labels(path, str(status)).inc()

    def observe_first_token(self, seconds: float) -> None:
        """Record the time to the first token of an answer."""
        self._first_token.observe(seconds)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)


class _HostCollector(Collector):
    """The host's counters and gauges, read when the metrics are requested."""

    def __init__(self, host: ModelHost) -> None:
        self._host = host

    def collect(self) -> Iterator[Metric]:
        host, stats = self._host, self._host.stats
        for name, value, text in (
            ("prompt_tokens", stats.prompt_tokens, "Prompt tokens computed."),
            ("reused_tokens", stats.cached_tokens, "Prompt tokens that were in a KV cache."),
            ("generated_tokens", stats.generated_tokens, "Tokens generated."),
            ("steps", stats.steps, "Batches computed."),
            ("step_seconds", stats.step_seconds, "Time in these batches."),
        ):
            yield CounterMetricFamily(f"pigguf_{name}", text, value)
        for name, value, text in (
            ("slots", host.slot_count, "Requests that can run at once."),
            ("running", host.running, "Requests that have a slot."),
            ("waiting", host.waiting, "Requests that wait for a slot."),
            (
                "available",
                host.failure is None and not host.is_shutting_down,
                "Whether the model is available.",
            ),
        ):
            yield GaugeMetricFamily(f"pigguf_{name}", text, value)
