"""Fine-tuning where positions are a table: it is resampled first, trained as a whole, and converts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetuning.test_trained_model import loaded
from support.tiny_checkpoints import make_checkpoint
from transformers import AutoModelForCausalLM

import pigguf
from pigguf.errors import UnsupportedModel, UsageError
from pigguf.finetuning.settings import FinetuneSettings

SETTINGS = FinetuneSettings(
    4, method="full", dtype="f32", device="cpu", steps=30, batch=4, learning_rate=3e-3, held_out=4, every=30
)
TABLES = {"gpt2": "wpe", "starcoder": "wpe", "opt": "embed_positions"}


@pytest.fixture(scope="module", params=TABLES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@torch.no_grad()
def test_the_table_lies_between_the_old_rows_before_the_first_step(family: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", family)
    old = AutoModelForCausalLM.from_pretrained(checkpoint)
    table = dict(old.named_parameters())[next(n for n, _ in old.named_parameters() if TABLES[family] in n)]
    first = len(table) - 64
    model = loaded(checkpoint, SETTINGS).model
    new = dict(model.named_parameters())[next(n for n, _ in model.named_parameters() if TABLES[family] in n)]
    assert len(new) == 256 + first
    torch.testing.assert_close(new[:first], table[:first])
    expected = torch.nn.functional.interpolate(table[first:].T[None], 256, mode="linear", align_corners=True)[
        0
    ].T
    torch.testing.assert_close(new[first:], expected, rtol=1e-4, atol=1e-6)


def test_thirty_steps_bring_the_loss_down_and_the_result_converts(
    family: str, tmp_path: Path, novel: str
) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", family)
    text = tmp_path / "novel.txt"
    text.write_text(novel[:60_000], encoding="utf-8")
    result = pigguf.finetune(checkpoint, [text], tmp_path / "long", SETTINGS)
    first, last = result.steps[0]["held_out"]["text"], result.steps[-1]["held_out"]["text"]
    assert last < first - 0.2
    made = pigguf.convert(tmp_path / "long", tmp_path / "long.gguf", type="F32")
    assert made.plan.rope.context_length == 256


def test_an_adapter_cannot_carry_a_table_and_alibi_has_nothing_to_divide(tmp_path: Path, novel: str) -> None:
    text = tmp_path / "novel.txt"
    text.write_text(novel[:20_000], encoding="utf-8")
    checkpoint = make_checkpoint(tmp_path / "gpt2", "gpt2")
    with pytest.raises(UsageError) as caught:
        pigguf.finetune(checkpoint, [text], tmp_path / "out", FinetuneSettings(4, steps=1))
    assert "`method=full`" in (caught.value.hint or "")
    bloom = make_checkpoint(tmp_path / "bloom", "bloom")
    with pytest.raises(UnsupportedModel, match="type alibi"):
        pigguf.finetune(bloom, [text], tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()
