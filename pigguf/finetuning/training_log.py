"""What a fine-tuning tells of each step: a line of its log."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class StepMetrics:
    """One line of the log.

    Attributes:
        step: 1 is the first; 0 tells the measurement before it.
        loss: the mean over the step's sequences, in nats a token; None for step 0.
        learning_rate: what the step was taken with.
        gradient_norm: before it was clipped.
        tokens: trained on so far.
        seconds: what the step took.
        held_out: kind of sequence -> mean loss of the held-out ones, where they were measured.
    """

    step: int
    loss: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    tokens: int = 0
    seconds: float | None = None
    held_out: Mapping[str, float] | None = None

    def as_data(self) -> dict[str, Any]:
        """The line as JSON tells it."""
        perplexity = None if self.loss is None else math.exp(min(self.loss, 700.0))
        told = {**asdict(self), "perplexity": perplexity}
        return {name: value for name, value in told.items() if value is not None}


StepCallback = Callable[[StepMetrics], None]
