"""Every variant of every family, converted and run by the engine, compared with transformers.

At its own context length and, with rotary positions, at four times that by Position Interpolation; in F32
exactly, in Q8_0 within the error of Q8_0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.compare import agreement
from support.tiny_checkpoints import VOCAB_SIZE, make_checkpoint
from support.tiny_families import MODEL_VARIANTS, scaled_rope_parameters

import pigguf

FACTOR = 4
Q8_0_COST = 5e-3  # mean KL of Q8_0, weights and activations, in models as narrow as these


def random_tokens(count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(5).integers(3, VOCAB_SIZE, count)]


@pytest.mark.parametrize("kind", MODEL_VARIANTS)
def test_a_model_matches_transformers_over_its_context(kind: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", kind)
    for type, largest in (("F32", 1e-6), ("Q8_0", Q8_0_COST)):
        result = pigguf.convert(checkpoint, tmp_path / f"{type}.gguf", type=type)
        tokens = random_tokens(result.plan.rope.context_length)
        found = agreement(tmp_path / f"{type}.gguf", checkpoint, tokens)
        assert found.mean_kl <= largest, type
        assert found.same_top >= (0.98 if type == "F32" else 0.8)


NOT_IN_TRANSFORMERS = {"InternLM2ForCausalLM", "BaichuanForCausalLM", "Gemma3ForConditionalGeneration"}
# Variants that transformers cannot compute with a linear factor.
OTHERS = {
    "phi3": "transformers has only longrope scaling for it: tests/architectures/test_family_specifics.py",
    "gptj": "transformers has a cos/sin table for it: tests/architectures/test_gptj.py",
}


@pytest.mark.parametrize("kind", [kind for kind in MODEL_VARIANTS if "," not in kind and kind not in OTHERS])
def test_an_extended_model_matches_transformers_past_its_original_context(kind: str, tmp_path: Path) -> None:
    """Override the factor; with half of it, the same comparison fails."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint", kind)
    family = pigguf.convert(checkpoint, type="F32", dry_run=True).plan
    if family.rope.rope_type != "none":
        pytest.skip("positions are not rotary, or are scaled already")
    original = family.rope.original_context
    rope = {"rope_type": "linear", "factor": float(FACTOR), "rope_theta": family.rope.rope_theta}
    extended = make_checkpoint(tmp_path / "extended", kind, **scaled_rope_parameters(kind, rope))
    tokens = random_tokens(original * FACTOR)
    for factor in (FACTOR, FACTOR / 2):
        overrides = pigguf.RopeOverrides(factor, int(original * FACTOR / factor), original * FACTOR)
        pigguf.convert(checkpoint, tmp_path / f"{factor}.gguf", type="F32", rope=overrides)
        found = agreement(tmp_path / f"{factor}.gguf", extended, tokens)
        assert (found.mean_kl <= 1e-6) == (factor == FACTOR)


def test_the_variants_cover_every_family() -> None:
    from pigguf.architectures import FAMILIES

    covered = {kind.hf_class for kind in MODEL_VARIANTS.values()}
    uncovered = [family.hf_classes[0] for family in FAMILIES if not covered & set(family.hf_classes)]
    assert set(uncovered) <= NOT_IN_TRANSFORMERS
