"""GPT-J with a factor: transformers has a cos/sin table, which is recomputed here with the factor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.compare import engine_logits, log_softmax
from support.tiny_checkpoints import VOCAB_SIZE, make_checkpoint
from transformers import AutoModelForCausalLM

import pigguf

ORIGINAL, EXTENDED = 64, 256


@pytest.mark.parametrize("factor", [4, 2])
def test_positions_are_divided_by_the_factor(factor: int, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "gptj")
    overrides = pigguf.RopeOverrides(factor=4, original_context=ORIGINAL)
    pigguf.convert(checkpoint, tmp_path / "model.gguf", type="F32", rope=overrides)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, n_positions=EXTENDED, dtype=torch.float32)
    rotated = model.config.rotary_dim
    turns = np.outer(np.arange(EXTENDED) / factor, 10000.0 ** (-np.arange(0, rotated, 2) / rotated))
    table = torch.from_numpy(np.hstack([np.sin(turns), np.cos(turns)])).float()
    tables = [module for module in model.modules() if hasattr(module, "embed_positions")]
    assert tables
    for module in tables:
        module.embed_positions = table
    tokens = [int(token) for token in np.random.default_rng(5).integers(3, VOCAB_SIZE, EXTENDED)]
    with torch.no_grad():
        expected = model.eval()(torch.tensor([tokens])).logits[0].numpy()
    divergence = [
        float((np.exp(log_softmax(theirs)) * (log_softmax(theirs) - log_softmax(ours))).sum())
        for ours, theirs in zip(engine_logits(tmp_path / "model.gguf", tokens), expected, strict=True)
    ]
    assert (np.mean(divergence) <= 1e-6) == (factor == 4)
