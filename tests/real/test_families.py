"""Every kind of model through the whole conversion and the real engine, against transformers.

At the window it was made for and, where positions are rotations, at four times that by Position
Interpolation; in F32 exactly, in Q8_0 as near as Q8_0 is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.compare import agreement
from support.tiny_checkpoints import VOCAB_SIZE, make_checkpoint
from support.tiny_families import KINDS, scaled

import pigguf

FACTOR = 4
Q8_0_COST = 5e-3  # mean KL of Q8_0, weights and activations, in models as narrow as these


def random_tokens(count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(5).integers(3, VOCAB_SIZE, count)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_transformers_own_over_its_window(kind: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", kind)
    for type, largest in (("F32", 1e-6), ("Q8_0", Q8_0_COST)):
        result = pigguf.convert(checkpoint, tmp_path / f"{type}.gguf", type=type)
        tokens = random_tokens(result.plan.rope.context_length)
        found = agreement(tmp_path / f"{type}.gguf", checkpoint, tokens)
        assert found.mean_kl <= largest, type
        assert found.same_top >= (0.98 if type == "F32" else 0.8)


NOT_IN_TRANSFORMERS = {"InternLM2ForCausalLM", "BaichuanForCausalLM", "Gemma3ForConditionalGeneration"}
# What transformers itself cannot compute with a linear factor like the others'.
OTHERS = {
    "phi3": "transformers scales it by longrope alone: tests/architectures/test_phi3.py",
    "gptj": "transformers has a table of its rotations: tests/architectures/test_gptj.py",
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "," not in kind and kind not in OTHERS])
def test_an_extended_model_is_transformers_own_past_its_window(kind: str, tmp_path: Path) -> None:
    """The factor comes from the command line here; with half of it, the same comparison fails."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint", kind)
    family = pigguf.convert(checkpoint, type="F32", dry_run=True).plan
    if family.rope.rope_type != "none":
        pytest.skip("positions are no rotation, or are scaled already")
    original = family.rope.original_context
    rope = {"rope_type": "linear", "factor": float(FACTOR), "rope_theta": family.rope.rope_theta}
    extended = make_checkpoint(tmp_path / "extended", kind, **scaled(kind, rope))
    tokens = random_tokens(original * FACTOR)
    for factor in (FACTOR, FACTOR / 2):
        overrides = pigguf.RopeOverrides(factor, int(original * FACTOR / factor), original * FACTOR)
        pigguf.convert(checkpoint, tmp_path / f"{factor}.gguf", type="F32", rope=overrides)
        found = agreement(tmp_path / f"{factor}.gguf", extended, tokens)
        assert (found.mean_kl <= 1e-6) == (factor == FACTOR)


def test_the_kinds_cover_every_family() -> None:
    from pigguf.architectures import FAMILIES

    covered = {kind.cls for kind in KINDS.values()}
    uncovered = [family.hf_classes[0] for family in FAMILIES if not covered & set(family.hf_classes)]
    assert set(uncovered) <= NOT_IN_TRANSFORMERS
