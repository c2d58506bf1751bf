"""Rope types other than linear: equal to transformers past the original context, not without scaling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.compare import agreement
from support.tiny_checkpoints import VOCAB_SIZE, edit_config, make_checkpoint

import pigguf
from pigguf.rope import RopeOverrides

ORIGINAL, FACTOR = 64, 4
CONTEXT = ORIGINAL * FACTOR
HEAD, BASE = 16, 10000.0

YARN = {
    "rope_type": "yarn",
    "rope_theta": BASE,
    "factor": float(FACTOR),
    "original_max_position_embeddings": ORIGINAL,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": BASE,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": ORIGINAL,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": BASE,
    "short_factor": [1.0 + pair / 16 for pair in range(HEAD // 2)],
    "long_factor": [1.0 + pair for pair in range(HEAD // 2)],
    "original_max_position_embeddings": 4 * ORIGINAL,  # llama.cpp opens a context of 256 tokens at least
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "yarn": ("llama", YARN),
    "yarn, attention": ("llama", {**YARN, "attention_factor": 1.4}),
    "yarn, mscale": ("llama", {**YARN, "mscale": 0.5, "mscale_all_dim": 1.0}),
    "yarn of qwen2": ("qwen2", YARN),
    "llama3": ("llama", LLAMA3),
    "longrope": ("llama", LONGROPE),
}
FIXED_BASE = BASE * (FACTOR * CONTEXT / ORIGINAL - (FACTOR - 1)) ** (HEAD / (HEAD - 2))  # dynamic NTK's


def random_tokens(count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(5).integers(3, VOCAB_SIZE, count)]


def make(path: Path, family: str, rope: dict[str, Any], context: int = CONTEXT) -> Path:
    return make_checkpoint(path, family, rope_parameters=dict(rope), max_position_embeddings=context)


@pytest.mark.parametrize("name", CASES)
def test_a_scaled_model_matches_transformers_up_to_the_extended_context(name: str, tmp_path: Path) -> None:
    family, rope = CASES[name]
    original = rope["original_max_position_embeddings"]
    context = original * FACTOR
    checkpoint = make(tmp_path / "checkpoint", family, rope, context)
    result = pigguf.convert(checkpoint, tmp_path / "model.gguf", type="F32")
    assert result.plan.rope.rope_type == rope["rope_type"]
    assert result.plan.rope.context_length == context
    for length in (context, original):  # LongRoPE has a list for each
        found = agreement(tmp_path / "model.gguf", checkpoint, random_tokens(length))
        assert found.mean_kl <= 1e-6
        assert found.same_top >= 0.99


@pytest.mark.parametrize("name", CASES)
def test_without_the_scaling_the_model_does_not_match(name: str, tmp_path: Path) -> None:
    family, rope = CASES[name]
    context = rope["original_max_position_embeddings"] * FACTOR
    checkpoint = make(tmp_path / "checkpoint", family, rope, context)
    unscaled = make(tmp_path / "unscaled", family, {"rope_type": "default", "rope_theta": BASE}, context)
    pigguf.convert(unscaled, tmp_path / "model.gguf", type="F32")
    found = agreement(tmp_path / "model.gguf", checkpoint, random_tokens(context))
    assert found.mean_kl > 1e-3
    assert found.same_top < 0.99


@pytest.mark.parametrize("name", ["yarn, attention", "llama3", "longrope"])
def test_an_exported_and_reconverted_model_keeps_its_scaling(name: str, tmp_path: Path) -> None:
    family, rope = CASES[name]
    checkpoint = make(
        tmp_path / "checkpoint", family, rope, rope["original_max_position_embeddings"] * FACTOR
    )
    pigguf.convert(checkpoint, tmp_path / "first.gguf", type="F32")
    pigguf.export(tmp_path / "first.gguf", tmp_path / "exported")
    pigguf.convert(tmp_path / "exported", tmp_path / "second.gguf", type="F32")
    first, second = (pigguf.inspect(tmp_path / f"{name}.gguf").rope for name in ("first", "second"))
    assert first is not None
    assert first.rope_type == rope["rope_type"]
    assert second == first
    found = agreement(tmp_path / "second.gguf", tmp_path / "exported", random_tokens(CONTEXT))
    assert found.mean_kl <= 1e-6


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_dynamic_scaling_matches_at_the_context_it_was_fixed_to(family: str, tmp_path: Path) -> None:
    """Fixed to 256 tokens it is unscaled with another rope_theta, equal to transformers at this length."""
    fixed = make(tmp_path / "fixed", family, {"rope_type": "default", "rope_theta": FIXED_BASE})
    dynamic = make_checkpoint(tmp_path / "dynamic", family)
    edit_config(
        dynamic, rope_parameters={"rope_type": "dynamic", "rope_theta": BASE, "factor": float(FACTOR)}
    )
    pigguf.convert(dynamic, tmp_path / "model.gguf", type="F32", rope=RopeOverrides(context=CONTEXT))
    tokens = random_tokens(CONTEXT)
    for reference in (fixed, dynamic):
        found = agreement(tmp_path / "model.gguf", reference, tokens)
        assert found.mean_kl <= 1e-6
        assert found.same_top >= 0.99
    unscaled = make(tmp_path / "unscaled", family, {"rope_type": "default", "rope_theta": BASE})
    assert agreement(tmp_path / "model.gguf", unscaled, tokens).mean_kl > 1e-3


def test_a_quantized_copy_keeps_the_tensor_of_its_positions(tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "checkpoint", "llama", LLAMA3)
    pigguf.convert(checkpoint, tmp_path / "first.gguf", type="F32")
    pigguf.quantize(tmp_path / "first.gguf", tmp_path / "second.gguf", type="Q8_0")
    first, second = (pigguf.inspect(tmp_path / f"{name}.gguf").rope for name in ("first", "second"))
    assert first is not None
    assert first.rope_type == "llama3"
    assert second == first


def test_a_known_name_alone_extends_a_plain_llama(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "llama-superhot-8k", max_position_embeddings=2048)
    plan = pigguf.convert(checkpoint, type="F32", dry_run=True).plan
    assert (plan.rope.rope_type, plan.rope.factor, plan.rope.context_length) == ("linear", 4.0, 8192)
    assert "llama-superhot-8k" in plan.rope.decisions[0]
