"""The trained model's positions and attention, against transformers' plain forward pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.tiny_checkpoints import FAMILIES, make_checkpoint
from transformers import AutoModelForCausalLM

from pigguf.architectures import config_with_positions, family_from_config, hparams_from_config
from pigguf.checkpoint import Checkpoint
from pigguf.finetuning.finetune import extended_rope
from pigguf.finetuning.settings import FinetuneSettings
from pigguf.finetuning.trained_model import TrainedModel, load_model

SETTINGS = FinetuneSettings(4, method="full", dtype="f32", device="cpu")
POSITIONS = torch.cat([torch.arange(10, 30), torch.arange(200, 220)])  # one jump, past the toy's 64


@pytest.fixture(scope="module", params=[*sorted(FAMILIES), "olmo2", "stablelm"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / request.param, request.param)


def trained_loss(
    path: Path, settings: FinetuneSettings, tokens: torch.Tensor, first: int = 1
) -> torch.Tensor:
    return loaded(path, settings).loss(tokens, POSITIONS, torch.arange(len(tokens)) >= first)


def loaded(path: Path, settings: FinetuneSettings) -> TrainedModel:
    with Checkpoint.open(path) as checkpoint:
        family, rope = family_from_config(checkpoint.config), extended_rope(checkpoint, settings.factor)
        hparams = hparams_from_config(family, checkpoint.config, rope)
    return load_model(
        path, config_with_positions(family, checkpoint.config, hparams), family, hparams, settings
    )


def reference_loss(path: Path, tokens: torch.Tensor, positions: torch.Tensor, first: int = 1) -> torch.Tensor:
    """Return the loss of the plain checkpoint at given positions, with a causal mask of its own."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    length = len(tokens)
    mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
    logits = model(input_ids=tokens[None], position_ids=positions[None], attention_mask=mask).logits[0]
    return torch.nn.functional.cross_entropy(logits[first - 1 : -1], tokens[first:], reduction="sum")


@torch.no_grad()
def test_positions_are_divided_by_the_factor_and_attention_goes_across_the_jump(checkpoint: Path) -> None:
    tokens = torch.randint(0, 320, (40,), generator=torch.Generator().manual_seed(0))
    loss = trained_loss(checkpoint, SETTINGS, tokens)
    torch.testing.assert_close(loss, reference_loss(checkpoint, tokens, POSITIONS / 4), rtol=1e-5, atol=0)
    undivided = reference_loss(checkpoint, tokens, POSITIONS.float())
    assert abs(float(undivided - loss)) > 1e-3 * float(loss)
    second_part = trained_loss(checkpoint, SETTINGS, tokens, first=21)
    changed = torch.cat([tokens[:20].flip(0), tokens[20:]])
    assert abs(float(trained_loss(checkpoint, SETTINGS, changed, first=21) - second_part)) > 1e-3 * float(
        second_part
    )


@torch.no_grad()
def test_a_new_adapter_changes_nothing_yet(checkpoint: Path) -> None:
    tokens = torch.randint(0, 320, (40,), generator=torch.Generator().manual_seed(1))
    lora = FinetuneSettings(
        4, method="lora", rank=4, alpha=8, train=("norms", "embeddings"), dtype="f32", device="cpu"
    )
    torch.testing.assert_close(
        trained_loss(checkpoint, lora, tokens), trained_loss(checkpoint, SETTINGS, tokens), rtol=1e-5, atol=0
    )


def test_bf16_is_close_and_trained_weights_stay_float32(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "toy", dtype=torch.bfloat16)
    tokens = torch.randint(0, 320, (40,), generator=torch.Generator().manual_seed(2))
    lora = FinetuneSettings(4, rank=4, alpha=8, train=("norms",), device="cpu")
    with torch.no_grad():
        assert float(trained_loss(path, lora, tokens)) == pytest.approx(
            float(trained_loss(path, SETTINGS, tokens)), rel=0.02
        )
    model = loaded(path, lora)
    assert {parameter.dtype for parameter in model.trained_parameters.values()} == {torch.float32}
