"""Interpolated tables of learned positions: the rows, and the engine compared with transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.compare import agreement
from support.tiny_checkpoints import VOCAB_SIZE, make_checkpoint
from transformers import AutoModelForCausalLM

import pigguf
from pigguf.errors import PigError, RopeConflict
from pigguf.gguf_io import TensorData, read_header

WINDOW, EXTENDED = 64, 253  # 252 steps are 4 times 63: every fourth row is an original one
TABLES = {
    "gpt2": "transformer.wpe.weight",
    "starcoder": "transformer.wpe.weight",
    "opt": "model.decoder.embed_positions.weight",
}


def random_tokens(count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(5).integers(3, VOCAB_SIZE, count)]


def table_of(gguf: Path) -> np.ndarray[Any, Any]:
    header = read_header(gguf)
    tensor = header.tensors["position_embd.weight"]
    with TensorData(header) as data:
        return data.rows(tensor, 0, tensor.rows).view(np.float32)


def original_table(checkpoint: Path, family: str) -> torch.Tensor:
    state = AutoModelForCausalLM.from_pretrained(checkpoint).state_dict()
    return state[TABLES[family]][2 if family == "opt" else 0 :]


def with_table(checkpoint: Path, family: str, table: torch.Tensor, path: Path) -> Path:
    """Save the checkpoint with another table, as transformers does."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    embedding = model.get_submodule(TABLES[family].removesuffix(".weight"))
    if family == "opt":
        table = torch.cat([embedding.weight[:2].detach(), table])
    embedding.weight = torch.nn.Parameter(table)
    embedding.num_embeddings = len(table)
    model.config.max_position_embeddings = len(table) - (2 if family == "opt" else 0)
    for module in model.modules():  # GPT-2's mask is as long as its window
        if hasattr(module, "bias") and getattr(module.bias, "dtype", None) is torch.bool:
            length = model.config.max_position_embeddings
            module.bias = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    model.save_pretrained(path)
    for file in checkpoint.iterdir():
        if "token" in file.name:
            (path / file.name).write_bytes(file.read_bytes())
    return path


@pytest.mark.parametrize("family", TABLES)
def test_original_rows_are_kept_and_others_interpolated(family: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", family)
    result = pigguf.convert(
        checkpoint, tmp_path / "long.gguf", type="F32", rope=pigguf.RopeOverrides(context=EXTENDED)
    )
    assert result.plan.rope.context_length == EXTENDED
    assert result.plan.rope.factor == pytest.approx(EXTENDED / WINDOW)
    table, original = table_of(tmp_path / "long.gguf"), original_table(checkpoint, family).numpy()
    assert table.shape == (EXTENDED, 64)
    np.testing.assert_array_equal(table[::4], original)
    np.testing.assert_allclose(table[2::4], (original[:-1] + original[1:]) / 2, rtol=1e-6, atol=1e-7)
    reference = torch.nn.functional.interpolate(
        torch.from_numpy(original).T[None], EXTENDED, mode="linear", align_corners=True
    )
    np.testing.assert_allclose(table, reference[0].T.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", TABLES)
def test_the_engine_matches_transformers_with_the_interpolated_table(family: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", family)
    table = torch.nn.functional.interpolate(
        original_table(checkpoint, family).T[None], EXTENDED, mode="linear", align_corners=True
    )[0].T.contiguous()
    longer = with_table(checkpoint, family, table, tmp_path / "longer")
    rope = pigguf.RopeOverrides(context=EXTENDED)
    pigguf.convert(checkpoint, tmp_path / "long.gguf", type="F32", rope=rope)
    found = agreement(tmp_path / "long.gguf", longer, random_tokens(EXTENDED))
    assert found.mean_kl <= 1e-6
    assert found.same_top >= 0.99


@pytest.mark.parametrize("family", TABLES)
def test_another_table_does_not_match(family: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", family)
    original = original_table(checkpoint, family)
    repeated = original.repeat(4, 1)[:EXTENDED].contiguous()
    longer = with_table(checkpoint, family, repeated, tmp_path / "longer")
    rope = pigguf.RopeOverrides(context=EXTENDED)
    pigguf.convert(checkpoint, tmp_path / "long.gguf", type="F32", rope=rope)
    assert agreement(tmp_path / "long.gguf", longer, random_tokens(EXTENDED)).mean_kl > 1e-4


def test_nearest_rows_and_a_shorter_table(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "gpt2")
    original = original_table(checkpoint, "gpt2").numpy()
    nearest = pigguf.RopeOverrides(factor=2, interpolation="nearest")
    result = pigguf.convert(checkpoint, tmp_path / "nearest.gguf", type="F32", rope=nearest)
    assert "nearest" in result.plan.rope.explain()
    rows = np.floor(np.arange(128) * (63 / 127) + 0.5).astype(int)
    np.testing.assert_array_equal(table_of(tmp_path / "nearest.gguf"), original[rows])
    shorter = pigguf.RopeOverrides(context=40, interpolation="none")
    pigguf.convert(checkpoint, tmp_path / "shorter.gguf", type="F32", rope=shorter)
    np.testing.assert_array_equal(table_of(tmp_path / "shorter.gguf"), original[:40])


@pytest.mark.parametrize(
    ("family", "overrides", "part"),
    [
        ("gpt2", {"context": 128, "interpolation": "none"}, "128 positions need more"),
        ("gpt2", {"context": 128, "factor": 3}, "`rope.context=128` is not 64 x `rope.factor=3`"),
        ("gpt2", {"original_context": 32, "context": 64}, "`rope.original_context=32` contradicts"),
        (
            "llama",
            {"context": 128, "interpolation": "linear"},
            "`rope.interpolation=linear`: LlamaForCausalLM",
        ),
        ("bloom", {"factor": 2}, "no positions to scale"),
    ],
)
def test_overrides_that_do_not_fit_a_table_are_rejected(
    family: str, overrides: dict[str, Any], part: str, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", family)
    with pytest.raises(RopeConflict) as caught:
        pigguf.convert(checkpoint, tmp_path / "x.gguf", rope=pigguf.RopeOverrides(**overrides))
    assert part in caught.value.message
    assert caught.value.hint
    assert not (tmp_path / "x.gguf").exists()


def test_a_model_does_not_run_past_its_table(tmp_path: Path) -> None:
    """llama.cpp would abort the process there."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "gpt2")
    pigguf.convert(checkpoint, tmp_path / "model.gguf", type="F32")
    with pytest.raises(PigError) as caught:
        agreement(tmp_path / "model.gguf", checkpoint, random_tokens(WINDOW + 1))
    assert caught.value.hint
