"""A merged adapter in the engine, compared with transformers and peft beyond the original context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.adapters import ALL_LINEAR, logits, make_adapter, peft_model
from support.compare import engine_logits, log_softmax
from support.tiny_checkpoints import FAMILIES, VOCAB_SIZE, edit_config, make_checkpoint

import pigguf

ORIGINAL, FACTOR = 64, 4
EXTENDED = {
    "rope_parameters": {"rope_type": "linear", "factor": float(FACTOR), "rope_theta": 10000.0},
    "max_position_embeddings": ORIGINAL * FACTOR,
}
TOKENS = [int(token) for token in np.random.default_rng(5).integers(3, VOCAB_SIZE, ORIGINAL * FACTOR)]
CASES: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ALL_LINEAR},
    "with norms and embeddings": {"modules_to_save": ["norm", "input_layernorm", "embed_tokens"]},
}


def mean_kl(gguf: Path, base: Path, adapter: Path) -> float:
    """Return KL(transformers with peft || engine), the mean over all positions, in nats."""
    divergences = []
    theirs = logits(peft_model(base, adapter), TOKENS)
    for actual, expected in zip(engine_logits(gguf, TOKENS), theirs, strict=True):
        p, q = log_softmax(expected), log_softmax(actual)
        divergences.append(float((np.exp(p) * (p - q)).sum()))
    return float(np.mean(divergences))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_extended_model_matches_peft_up_to_four_times_the_original_context(
    family: str, case: str, tied: bool, tmp_path: Path
) -> None:
    base = make_checkpoint(tmp_path / "base", family, tie_word_embeddings=tied)
    adapter = make_adapter(base, tmp_path / "long", rope=EXTENDED, **CASES[case])
    result = pigguf.convert(base, tmp_path / "model.gguf", adapter=adapter, type="F32")
    assert result.plan.rope.context_length == ORIGINAL * FACTOR
    assert mean_kl(tmp_path / "model.gguf", base, adapter) <= 1e-6


def test_without_the_factor_or_without_the_adapter_the_same_comparison_fails(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "long", rope=EXTENDED)
    weights_only = make_adapter(base, tmp_path / "weights-only")
    edit_config(base, max_position_embeddings=ORIGINAL * FACTOR)
    pigguf.convert(base, tmp_path / "unscaled.gguf", adapter=weights_only, type="F32")
    assert mean_kl(tmp_path / "unscaled.gguf", base, adapter) > 1e-3
    edit_config(base, **EXTENDED)
    pigguf.convert(base, tmp_path / "unadapted.gguf", type="F32")
    assert mean_kl(tmp_path / "unadapted.gguf", base, adapter) > 1e-3
