"""Next-token cross entropy over a large vocabulary, with the logits of one chunk of tokens in memory.

The logits of 32768 tokens and a vocabulary of 49152 take 6 GB in float32, and as much again for their
gradient. Here the logits of a chunk are turned into loss and gradients at once and discarded.
"""

from __future__ import annotations

from typing import Any

import torch

MAX_CHUNK_LOGITS = 1 << 24  # elements of the logits of one chunk: 64 MiB in float32


def chunked_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of next tokens, summed over tokens, in nats.

    Args:
        hidden: the output of the last layer after its norm, (n_tokens, n_embd).
        weight: the weight of the output layer, (vocab_size, n_embd).
        targets: the id of the token that follows each row, (n_tokens,), int64.

    Returns:
        A scalar, float32, differentiable with respect to `hidden` and `weight`.
    """
    loss: torch.Tensor = _ChunkedCrossEntropy.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross entropy that computes its gradients in the forward pass, while a chunk's logits are in memory."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute the loss and, where they are needed, the gradients of both inputs."""
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        hidden_grad = torch.empty_like(hidden) if needs_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        output_weight = weight.to(hidden.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        chunk_size = max(1, MAX_CHUNK_LOGITS // weight.shape[0])
        for start in range(0, hidden.shape[0], chunk_size):
            chunk = hidden[start : start + chunk_size]  # (chunk, n_embd)
            target = targets[start : start + chunk_size, None]  # (chunk, 1)
            logits = (chunk @ output_weight.T).float()  # (chunk, vocab_size)
            log_normalizer = logits.logsumexp(dim=1, keepdim=True)  # (chunk, 1)
            total += (log_normalizer - logits.gather(1, target)).sum()
            if hidden_grad is None and weight_grad is None:
                continue
            # d loss / d logits = softmax(logits) - one_hot(target), in the memory of the logits
            logits_grad = logits.sub_(log_normalizer).exp_()
            logits_grad.scatter_add_(1, target, torch.full_like(log_normalizer, -1.0))
            logits_grad = logits_grad.to(hidden.dtype)
            if hidden_grad is not None:
                hidden_grad[start : start + chunk_size] = logits_grad @ output_weight
            if weight_grad is not None:
                weight_grad += logits_grad.T @ chunk
        ctx.gradients = hidden_grad, weight_grad
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients of the forward pass by that of the loss."""
        (loss_grad,) = gradients
        hidden_grad, weight_grad = ctx.gradients
        return (
            None if hidden_grad is None else hidden_grad * loss_grad.to(hidden_grad.dtype),
            None if weight_grad is None else (weight_grad * loss_grad).to(ctx.weight_dtype),
            None,
        )
