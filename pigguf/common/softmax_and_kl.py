"""Functions of logits: log-softmax, log-sum-exp, KL divergence."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Return the log-probabilities of one row of logits, (vocab_size,), in nats.

    They are computed in float64: what a q8_0 KV cache changes is less than float32 rounds off.
    """
    shifted = logits - np.float64(logits.max())
    return shifted - math.log(np.exp(shifted).sum())


def log_sum_exp(logits: Logits) -> float:
    """Return log(sum(exp(logits))) of one row, (vocab_size,): float32 exponentials summed in float64.

    `logits[token] - log_sum_exp(logits)` is a token's log-probability; for few tokens it is several times
    faster than `log_softmax`.
    """
    largest = logits.max()
    return float(largest) + math.log(np.exp(logits - largest).sum(dtype=np.float64))


def kl_divergence(reference: Logits, model: Logits, token: int) -> tuple[float, float, float, float]:
    """Compare two rows of logits, (vocab_size,) each.

    Returns:
        D(reference || model) in nats; 1.0 if the most likely token is the same, else 0.0; the
        log-likelihood of `token` by the model; and that by the reference.
    """
    p, q = log_softmax(reference), log_softmax(model)
    distance = max(0.0, float((np.exp(p) * (p - q)).sum()))
    return distance, float(p.argmax() == q.argmax()), float(q[token]), float(p[token])
