"""The chunked loss against PyTorch's own, which holds all logits at once."""

from __future__ import annotations

import pytest
import torch

from pigguf.finetuning import loss as loss_module
from pigguf.finetuning.loss import chunked_cross_entropy


@pytest.mark.parametrize("trains_the_head", [True, False])
def test_loss_and_gradients_are_those_of_all_logits_at_once(
    trains_the_head: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        loss_module, "MAX_CHUNK_LOGITS", 7 * 50
    )  # 23 rows are four chunks, the last one short
    torch.manual_seed(0)
    hidden = torch.randn(23, 16, requires_grad=True)
    head = torch.randn(50, 16, requires_grad=trains_the_head)
    targets = torch.randint(0, 50, (23,))

    chunked = chunked_cross_entropy(hidden, head, targets)
    (chunked * 0.25).backward()
    gradient, hidden.grad = hidden.grad, None
    head_gradient, head.grad = head.grad, None
    whole = torch.nn.functional.cross_entropy(hidden @ head.T, targets, reduction="sum")
    (whole * 0.25).backward()

    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(gradient, hidden.grad)
    torch.testing.assert_close(head_gradient, head.grad)


def test_no_chunk_holds_more_logits_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "MAX_CHUNK_LOGITS", 7 * 50)
    seen: list[int] = []
    exponential = torch.Tensor.exp_
    monkeypatch.setattr(torch.Tensor, "exp_", lambda self: (seen.append(self.numel()), exponential(self))[1])
    chunked_cross_entropy(
        torch.randn(23, 16, requires_grad=True), torch.randn(50, 16), torch.zeros(23, dtype=torch.int64)
    )
    assert len(seen) == 4
    assert max(seen) == 7 * 50


def test_without_gradients_none_are_made() -> None:
    with torch.no_grad():
        loss = chunked_cross_entropy(torch.zeros(3, 4), torch.zeros(8, 4), torch.zeros(3, dtype=torch.int64))
    assert float(loss) == pytest.approx(3 * 2.0794415)  # ln 8
