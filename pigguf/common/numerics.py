"""divergence: how far one prediction of the next token is from another, in float64."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


def kl_divergence(reference: Logits, model: Logits, token: int) -> tuple[float, float, float, float]:
    """Two rows of logits, compared.

    Returns:
        D(reference || model) in nats; 1.0 if the likeliest token is the same, else 0.0; and the log
        likelihood of `token` by the model and by the reference.
    """
    p, q = _log_softmax(reference), _log_softmax(model)
    distance = max(0.0, float((np.exp(p) * (p - q)).sum()))
    return distance, float(p.argmax() == q.argmax()), float(q[token]), float(p[token])


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    """In float64: what a q8_0 cache costs is less than the rounding of float32."""
    shifted = logits - np.float64(logits.max())
    return shifted - math.log(np.exp(shifted).sum())
