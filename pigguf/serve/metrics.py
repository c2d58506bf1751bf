"""What Prometheus reads of the server: counts and times, never a text."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pigguf.serve.model_host import ModelHost

_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)


class ServerMetrics:
    """The server's figures since its beginning."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, host: ModelHost) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_OfHost(host))
        self._answered = Counter(
            "pigguf_requests", "Requests answered.", ["path", "status"], registry=self._registry
        )
        self._first = Histogram(
            "pigguf_first_token_seconds",
            "From a request to the first token of its answer.",
            registry=self._registry,
            buckets=_SECONDS,
        )

    def count_request(self, path: str, status: int) -> None:
        self._answered.labels(path, str(status)).inc()

    def observe_first_token(self, seconds: float) -> None:
        self._first.observe(seconds)

    def exposition(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self._registry)


class _OfHost(Collector):
    """The host's own figures, read when they are asked for."""

    def __init__(self, host: ModelHost) -> None:
        self._host = host

    def collect(self) -> Iterator[Metric]:
        host, figures = self._host, self._host.stats
        for name, value, text in (
            ("prompt_tokens", figures.prompt_tokens, "Tokens of prompts computed."),
            ("reused_tokens", figures.cached_tokens, "Tokens of prompts that were in a cache."),
            ("generated_tokens", figures.generated_tokens, "Tokens of answers."),
            ("steps", figures.steps, "Batches computed."),
            ("step_seconds", figures.step_seconds, "Time in these batches."),
        ):
            yield CounterMetricFamily(f"pigguf_{name}", text, value)
        for name, value, text in (
            ("slots", host.slot_count, "Answers that can be written at once."),
            ("running", host.running, "Answers being written or read for."),
            ("waiting", host.waiting, "Answers that wait for a slot."),
            ("available", host.failure is None and not host.is_shutting_down, "Whether answers can be expected."),
        ):
            yield GaugeMetricFamily(f"pigguf_{name}", text, value)
