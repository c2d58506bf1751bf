"""Layers on a GPU: as many as were asked for, and the same text as on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pigguf.engine import Context, ContextOptions, Model

pytestmark = pytest.mark.gpu


def test_layers_go_to_the_gpu_and_compute_the_same(smollm2_gguf: Path) -> None:
    rows = {}
    for wanted, layers in ((0, 0), (7, 7), ("all", 31), ("auto", 31)):
        with (
            Model.open(smollm2_gguf, gpu_layers=wanted) as model,  # type: ignore[arg-type]
            Context(model, ContextOptions(length=256)) as context,
            context.sequence() as session,
        ):
            assert model.gpu_layers == layers
            tokens = model.tokenize(
                "It is a truth universally acknowledged, that a single man in possession of"
            )
            [(_, rows[wanted])] = session.evaluate(tokens, [len(tokens) - 1])
    for row in rows.values():
        assert np.corrcoef(row, rows[0])[0, 1] > 0.999
