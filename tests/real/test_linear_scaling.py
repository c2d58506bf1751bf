"""Linear scaling: equal to transformers past the original context, and not without the factor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.compare import agreement
from support.tiny_checkpoints import FAMILIES, VOCAB_SIZE, edit_config, make_checkpoint

import pigguf

ORIGINAL, FACTOR = 64, 4
LINEAR = {"rope_type": "linear", "factor": float(FACTOR), "rope_theta": 10000.0}


def random_tokens(count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(5).integers(3, VOCAB_SIZE, count)]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_extended_model_matches_transformers_up_to_the_extended_context(
    family: str, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", family, rope_parameters=LINEAR)
    result = pigguf.convert(checkpoint, tmp_path / "model.gguf", type="F32")
    assert result.plan.rope.context_length == ORIGINAL * FACTOR
    found = agreement(tmp_path / "model.gguf", checkpoint, random_tokens(ORIGINAL * FACTOR))
    assert found.mean_kl <= 1e-6
    assert found.same_top >= 0.99


@pytest.mark.parametrize("family", FAMILIES)
def test_without_the_factor_the_model_does_not_match(family: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", family, rope_parameters=LINEAR)
    unscaled = make_checkpoint(tmp_path / "unscaled", family)
    edit_config(unscaled, max_position_embeddings=ORIGINAL * FACTOR)
    pigguf.convert(unscaled, tmp_path / "model.gguf", type="F32")
    found = agreement(tmp_path / "model.gguf", checkpoint, random_tokens(ORIGINAL * FACTOR))
    assert found.mean_kl > 1e-3
    assert found.same_top < 0.99


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unextended_model_matches_transformers(family: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", family)
    result = pigguf.convert(checkpoint, tmp_path / "model.gguf", type="F32")
    assert result.plan.rope.context_length == ORIGINAL
    found = agreement(tmp_path / "model.gguf", checkpoint, random_tokens(ORIGINAL))
    assert found.mean_kl <= 1e-6
    assert found.same_top >= 0.99


def test_an_exported_and_reconverted_model_keeps_its_factor(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", rope_parameters=LINEAR)
    pigguf.convert(checkpoint, tmp_path / "first.gguf", type="F32")
    pigguf.export(tmp_path / "first.gguf", tmp_path / "exported")
    pigguf.convert(tmp_path / "exported", tmp_path / "second.gguf", type="F32")
    assert pigguf.inspect(tmp_path / "second.gguf").rope == pigguf.inspect(tmp_path / "first.gguf").rope
    found = agreement(tmp_path / "second.gguf", tmp_path / "exported", random_tokens(ORIGINAL * FACTOR))
    assert found.mean_kl <= 1e-6


@pytest.mark.slow
def test_the_real_model_at_nine_thousand_tokens_of_prose(
    smollm2_checkpoint: Path, novel: str, tmp_path: Path
) -> None:
    """SmolLM2 with a factor of 4: 9,000 tokens are past its own 8,192."""
    extended = tmp_path / "extended"
    extended.mkdir()
    for file in smollm2_checkpoint.iterdir():
        (extended / file.name).symlink_to(file.resolve())
    (extended / "config.json").unlink()
    (extended / "config.json").write_bytes((smollm2_checkpoint / "config.json").read_bytes())
    linear = {**LINEAR, "rope_theta": 100000.0}
    edit_config(extended, rope_parameters=linear, max_position_embeddings=32768)
    pigguf.convert(extended, tmp_path / "model.gguf", type="F32")
    with pigguf.open_model(tmp_path / "model.gguf", ctx=16) as model:
        tokens = model.tokenize(novel)[:9000]
    assert len(tokens) == 9000
    found = agreement(tmp_path / "model.gguf", extended, tokens)
    assert found.mean_kl <= 1e-6
    assert found.same_top >= 0.99
