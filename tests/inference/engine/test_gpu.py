"""Layers on a GPU: as many as were asked for, and the same text as on the CPU."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from pigguf.inference.engine import Context, ContextOptions, Model, library
from pigguf.inference.memory_planning import fit_to_memory

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


def test_a_plan_for_the_gpu_is_what_is_then_allocated_there(smollm2_gguf: Path) -> None:
    for wanted, length in (("auto", None), (7, 2048), ("all", 8192)):
        planned = fit_to_memory(smollm2_gguf, ContextOptions(length=length), gpu_layers=wanted)  # type: ignore[arg-type]
        assert planned.gpu_layers == (7 if wanted == 7 else 31)
        gpu = planned.devices[1]
        with (
            library.capture_log() as lines,
            Model.open(smollm2_gguf, gpu_layers=planned.gpu_layers) as model,
            Context(model, planned.options),
        ):
            pass
        pattern = rf"\s*{gpu.name}\w*\s+(?:model|KV|compute) buffer size =\s*([\d.]+) MiB"
        real = sum(float(found[1]) * 2**20 for line in lines if (found := re.match(pattern, line)))
        assert gpu.total == pytest.approx(real, rel=0.05)
        assert gpu.available is not None
        assert gpu.total <= gpu.available
