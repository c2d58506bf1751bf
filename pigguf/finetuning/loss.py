"""Next-token loss over a large vocabulary, with logits for a few hundred tokens at a time.

The logits of 32768 tokens x 49152 words would take 6 GB in float32, and as much again for their
gradient. Here each chunk's logits become loss and gradient at once and are forgotten.
"""

from __future__ import annotations

from typing import Any

import torch

MAX_CHUNK_LOGITS = 1 << 24  # of logits held at a time: 64 MiB in float32


def chunked_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The summed negative log-likelihood of `targets`, in nats.

    Args:
        hidden: (n, hidden_size), the last layer's output, normalised.
        weight: (vocab_size, hidden_size), the output matrix.
        targets: (n,), the token that follows each row.
    """
    loss: torch.Tensor = _ChunkedLoss.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return loss


class _ChunkedLoss(torch.autograd.Function):
    """Gradients are made in the forward pass, while a chunk's logits are at hand."""

    @staticmethod
    def forward(
        context: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        wants_hidden, wants_weight = context.needs_input_grad[:2]
        hidden_gradient = torch.empty_like(hidden) if wants_hidden else None
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        matrix = weight.to(hidden.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        size = max(1, MAX_CHUNK_LOGITS // weight.shape[0])
        for start in range(0, hidden.shape[0], size):
            rows, wanted = hidden[start : start + size], targets[start : start + size, None]
            logits = (rows @ matrix.T).float()
            normalizer = logits.logsumexp(dim=1, keepdim=True)
            total += (normalizer - logits.gather(1, wanted)).sum()
            if hidden_gradient is None and weight_gradient is None:
                continue
            probabilities = logits.sub_(normalizer).exp_()
            probabilities.scatter_add_(1, wanted, torch.full_like(normalizer, -1.0))
            gradient = probabilities.to(hidden.dtype)
            if hidden_gradient is not None:
                hidden_gradient[start : start + size] = gradient @ matrix
            if weight_gradient is not None:
                weight_gradient += gradient.T @ rows
        context.gradients = hidden_gradient, weight_gradient
        context.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (scale,) = gradients
        hidden, weight = context.gradients
        return (
            None if hidden is None else hidden * scale.to(hidden.dtype),
            None if weight is None else (weight * scale).to(context.weight_dtype),
            None,
        )
