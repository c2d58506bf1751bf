"""Position variants: each is the same as transformers' rope scaling of that name, also past the window."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.compare import log_softmax, transformers_logits
from support.tiny_checkpoints import VOCAB_SIZE, edit_config, make_checkpoint

import pigguf
from pigguf.errors import ContextOverflow, UsageError
from pigguf.evals.position_variants import AS_SHIPPED, PositionVariant, ntk_rope_theta, parse_variants
from pigguf.gguf_io import read_header
from pigguf.gguf_io.metadata import f32
from pigguf.inference.engine import Context, ContextOptions, Model, RuntimeRope

ORIGINAL, FACTOR = 64, 4
WINDOW = ORIGINAL * FACTOR
HEAD = 16  # of tests/support/tiny_checkpoints.py: 64 wide, 4 heads
TOKENS = [int(token) for token in np.random.default_rng(3).integers(3, VOCAB_SIZE, WINDOW)]

# name of the variant -> the rope parameters of transformers for the same
IN_TRANSFORMERS = {
    "none": {"rope_type": "default", "rope_theta": 10000.0},
    "linear:4": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "yarn:4": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    # 10000 * 4 ** (16 / 14), by hand
    "ntk:4": {"rope_type": "default", "rope_theta": 48760.584},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.gguf, an unextended model, and linear.gguf, the same weights under a factor of 4."""
    path = tmp_path_factory.mktemp("variants")
    checkpoint = make_checkpoint(path / "checkpoint")
    pigguf.convert(checkpoint, path / "model.gguf", type="F32")
    linear = make_checkpoint(path / "linear", rope_parameters=IN_TRANSFORMERS["linear:4"])
    pigguf.convert(linear, path / "linear.gguf", type="F32")
    return path


def mean_kl(gguf: Path, rope: RuntimeRope | None, checkpoint: Path) -> float:
    """Of transformers' distributions to the engine's, over all positions of TOKENS, in float32."""
    options = ContextOptions(length=WINDOW, cache_k="f32", cache_v="f32", flash_attention=False)
    divergences = []
    with Model.open(gguf, rope=rope) as model, Context(model, options) as context:
        rows = context.sequence().evaluate(TOKENS, range(WINDOW))
        for theirs, (_, ours) in zip(transformers_logits(checkpoint, TOKENS), rows, strict=True):
            p, q = log_softmax(theirs), log_softmax(ours)
            divergences.append(float((np.exp(p) * (p - q)).sum()))
    return float(np.mean(divergences))


@pytest.mark.parametrize("file", ["model.gguf", "linear.gguf"])
@pytest.mark.parametrize("name", IN_TRANSFORMERS)
def test_a_variant_is_as_in_transformers_to_four_times_the_window_whatever_the_file_states(
    name: str, file: str, plain: Path, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "same weights")
    edit_config(checkpoint, rope_parameters=IN_TRANSFORMERS[name], max_position_embeddings=WINDOW)
    _, variant = parse_variants([name], read_header(plain / file), WINDOW)
    assert variant.name == name
    assert mean_kl(plain / file, variant.rope, checkpoint) <= 1e-6


def test_the_variants_differ_from_each_other(plain: Path, tmp_path: Path) -> None:
    """YaRN without its attention factor, or from another original window, is another model too."""
    checkpoint = make_checkpoint(tmp_path / "same weights")
    yarn = IN_TRANSFORMERS["yarn:4"]
    _, variant = parse_variants(["yarn:4"], read_header(plain / "model.gguf"), WINDOW)
    for wrong in (
        {**yarn, "attention_factor": 1.0},
        {**yarn, "original_max_position_embeddings": WINDOW},
        {**yarn, "truncate": False},
        IN_TRANSFORMERS["linear:4"],
        IN_TRANSFORMERS["ntk:4"],
        IN_TRANSFORMERS["none"],
    ):
        edit_config(checkpoint, rope_parameters=wrong, max_position_embeddings=WINDOW)
        assert mean_kl(plain / "model.gguf", variant.rope, checkpoint) > 1e-4, wrong


def test_the_first_is_the_file_as_shipped_and_names_without_a_factor_reach_the_window(plain: Path) -> None:
    file = read_header(plain / "linear.gguf")
    variants = parse_variants(["none", "linear", "yarn", "ntk", "linear:2"], file, 2 * WINDOW)
    assert [variant.name for variant in variants] == [
        *(AS_SHIPPED, "none", "linear:8", "yarn:8", "ntk:8", "linear:2")
    ]
    assert variants[0] == PositionVariant(AS_SHIPPED, None)


def test_a_window_inside_the_original_one_needs_no_factor(plain: Path) -> None:
    _, variant = parse_variants(["ntk"], read_header(plain / "model.gguf"), 32)
    assert variant == PositionVariant("ntk:1", RuntimeRope(1.0, 10000.0, 32, "linear"))


def test_a_variant_allows_the_requested_window_and_no_longer_one(plain: Path) -> None:
    _, variant = parse_variants(["none"], read_header(plain / "model.gguf"), WINDOW)
    with Model.open(plain / "model.gguf", rope=variant.rope) as model:
        assert (model.context_length, model.rope.rope_type) == (WINDOW, "none")
        with pytest.raises(ContextOverflow):
            Context(model, ContextOptions(length=WINDOW + 1))


def test_the_ntk_aware_base_divides_the_lowest_frequency_by_the_factor_and_keeps_the_highest() -> None:
    base = ntk_rope_theta(10000.0, 4.0, HEAD)
    assert base == pytest.approx(48760.584, rel=1e-6)
    lowest = -(HEAD - 2) / HEAD
    assert base**lowest == pytest.approx(10000.0**lowest / 4, rel=1e-9)


@pytest.mark.parametrize(
    "name", ["", "NTK", "dynamic:4", "linear:", "linear:x", "yarn:0.5", "ntk:nan", "none:1"]
)
def test_an_unknown_variant_is_an_error_with_the_valid_ones(name: str, plain: Path) -> None:
    with pytest.raises(UsageError) as refusal:
        parse_variants([name], read_header(plain / "model.gguf"), WINDOW)
    for exists in ("none", "linear:F", "yarn:F", "ntk:F"):
        assert exists in str(refusal.value.hint)


def test_one_variant_twice_is_an_error_even_under_two_names(plain: Path) -> None:
    with pytest.raises(UsageError, match=r"linear:4 is given twice"):
        parse_variants(["linear:4", "linear"], read_header(plain / "model.gguf"), WINDOW)


def test_a_scaling_that_no_override_can_undo_is_an_error(plain: Path) -> None:
    file = read_header(plain / "linear.gguf")
    odd = replace(file, metadata={**file.metadata, "llama.rope.scaling.attn_factor": f32(0.7)})
    assert parse_variants([], odd, WINDOW) == (PositionVariant(AS_SHIPPED),)
    with pytest.raises(UsageError, match=r"attn_factor.*cannot be replaced by linear"):
        parse_variants(["none"], odd, WINDOW)
    norm = file.tensors["output_norm.weight"]
    llama3 = replace(file, tensors={**file.tensors, "rope_freqs.weight": replace(norm, shape=(HEAD // 2,))})
    with pytest.raises(UsageError, match=r"rope_freqs\.weight, which no override"):
        parse_variants(["none"], llama3, WINDOW)
