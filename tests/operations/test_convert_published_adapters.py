"""Adapters in the forms in which they were published, through the command: SuperHOT's and LongLoRA's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from support.adapters import ATTENTION, make_adapter, peft_merge_tensors
from support.tiny_checkpoints import make_checkpoint

import pigguf
from pigguf.cli import cli
from pigguf.errors import InvalidTensor
from pigguf.gguf_io import TensorData, read_header
from pigguf.gguf_io.metadata import f32, string, u32

# adapter_config.json as peft 0.3 wrote it, and the keys that 0.2 had beside them
PEFT_0_3 = {
    "base_model_name_or_path": "llama-13b",
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 4,
    "target_modules": ATTENTION,
    "task_type": "CAUSAL_LM",
}
PEFT_0_2 = {**PEFT_0_3, "enable_lora": None, "merge_weights": False}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["convert", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "llama")


def superhot(base: Path, path: Path, config: dict[str, object]) -> Path:
    """Make a LoRA in adapter_model.bin with an old adapter_config.json, and nothing else."""
    make_adapter(base, path, safetensors=False)
    (path / "adapter_config.json").write_text(json.dumps(config))
    (path / "README.md").unlink(missing_ok=True)
    assert {file.name for file in path.iterdir()} == {"adapter_config.json", "adapter_model.bin"}
    return path


@pytest.mark.parametrize("config", [PEFT_0_2, PEFT_0_3], ids=["peft 0.2", "peft 0.3"])
def test_a_superhot_adapter_with_the_factor_that_its_page_states(
    config: dict[str, object], base: Path, tmp_path: Path
) -> None:
    adapter = superhot(base, tmp_path / "superhot-8k", config)
    target = tmp_path / "model.gguf"
    done = run(base, "--adapter", adapter, "--rope-factor", 4, "--original-context", 64, "--type", "F32",
               "-o", target)  # fmt: skip
    assert "superhot-8k: rank 4 in 8 matrices" in done.stdout
    file = read_header(target)
    assert file.metadata["llama.rope.scaling.type"] == string("linear")
    assert file.metadata["llama.rope.scaling.factor"] == f32(4.0)
    assert file.metadata["llama.rope.scaling.original_context_length"] == u32(64)
    assert file.metadata["llama.context_length"] == u32(256)
    wanted = peft_merge_tensors(base, adapter)["model.layers.1.self_attn.v_proj.weight"]
    with TensorData(file) as data:
        found = data.rows(file.tensors["blk.1.attn_v.weight"], 0, len(wanted)).view(np.float32)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def longlora(base: Path, path: Path, rows: int) -> Path:
    """As LongLoRA's get_trainable_weights.py saves it: "embed" and "norm" whole, as many tokens as it had."""
    make_adapter(base, path, safetensors=False)
    trained = {
        name: tensor + 0.125
        for name, tensor in load_file(base / "model.safetensors").items()
        if "embed" in name or "norm" in name
    }
    embedding = trained["model.embed_tokens.weight"]
    trained["model.embed_tokens.weight"] = torch.cat([embedding, embedding[: rows - len(embedding)]])
    assert set(trained) == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        *(
            f"model.layers.{n}.{kind}_layernorm.weight"
            for n in range(2)
            for kind in ("input", "post_attention")
        ),
    }
    torch.save(trained, path / "trainable_params.bin")
    return path


def test_longloras_files_merge_with_a_base_of_the_same_vocabulary(base: Path, tmp_path: Path) -> None:
    adapter = longlora(base, tmp_path / "longlora", rows=320)
    done = run(base, "--adapter", adapter, "--rope-factor", 4, "--original-context", 64, "--type", "F32",
               "-o", tmp_path / "model.gguf")  # fmt: skip
    assert "6 tensors replaced" in done.stdout
    file = read_header(tmp_path / "model.gguf")
    wanted = load_file(base / "model.safetensors")["model.embed_tokens.weight"].numpy() + np.float32(0.125)
    with TensorData(file) as data:
        found = data.rows(file.tensors["token_embd.weight"], 0, 320).view(np.float32)
    np.testing.assert_array_equal(found, wanted)


def test_one_token_more_than_the_base_has_is_an_error_with_the_way_to_add_it_to_the_base(
    base: Path, tmp_path: Path
) -> None:
    """LongLoRA trains with a [PAD] token added: 32001 rows for a base of 32000."""
    adapter = longlora(base, tmp_path / "longlora", rows=321)
    with pytest.raises(InvalidTensor) as raised:
        pigguf.convert(base, tmp_path / "model.gguf", adapter=adapter)
    for word in ("model.embed_tokens.weight", "[321, 64]", "[320, 64]", str(adapter), str(base)):
        assert word in raised.value.message
    assert "resize_token_embeddings(321)" in (raised.value.hint or "")


def test_a_base_with_that_token_takes_the_adapter(base: Path, tmp_path: Path) -> None:
    adapter = longlora(base, tmp_path / "longlora", rows=321)
    wider = make_checkpoint(tmp_path / "wider", vocab_size=321)
    shutil.rmtree(base)
    done = run(
        wider, "--adapter", adapter, "--rope-factor", 4, "--original-context", 64, "-o", tmp_path / "m.gguf"
    )
    assert "6 tensors replaced" in done.stdout
    assert read_header(tmp_path / "m.gguf").tensors["token_embd.weight"].shape == (321, 64)
