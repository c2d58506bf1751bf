"""Counters of a scheduler's work, for metrics and tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class SchedulerStats:
    """Totals since the start.

    Attributes:
        prompt_tokens: prompt tokens that were computed.
        cached_tokens: prompt tokens that were in a KV cache already.
        generated_tokens: sampled tokens.
        steps: batches computed.
        step_seconds: time in these batches and in the prefill backend.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    step_seconds: float = 0.0
