"""The metrics of a training step: a line of log.jsonl, and the argument of the step callback."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class StepMetrics:
    """The metrics of one optimizer step. Its attributes are the keys of a line of the log.

    Attributes:
        step: the number of the step, from 1; 0 is the measurement before the first step.
        loss: the mean cross entropy over the step's sequences, in nats a token; None for step 0.
        learning_rate: the learning rate of the step; None for step 0.
        gradient_norm: the norm of the gradient before clipping; None for step 0.
        tokens: the number of tokens trained on so far.
        seconds: how long the step took; None for step 0.
        held_out: kind of sequence -> mean loss on the held-out sequences, in nats a token; None for steps
            without a measurement.
    """

    step: int
    loss: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    tokens: int = 0
    seconds: float | None = None
    held_out: Mapping[str, float] | None = None

    def as_data(self) -> dict[str, Any]:
        """Return the line of the log for JSON: without what is None, and with the perplexity of the loss."""
        perplexity = None if self.loss is None else math.exp(min(self.loss, 700.0))
        data = {**asdict(self), "perplexity": perplexity}
        return {name: value for name, value in data.items() if value is not None}


StepCallback = Callable[[StepMetrics], None]
