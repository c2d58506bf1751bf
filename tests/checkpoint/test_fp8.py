"""FP8 weights with scales, compared with transformers and with plain arithmetic."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from support.tiny_checkpoints import edit_config, make_checkpoint

import pigguf
from pigguf.checkpoint import Checkpoint
from pigguf.cli import cli
from pigguf.errors import CheckpointError, InvalidTensor, MissingTensor, PigError, UnsupportedModel

State = dict[str, torch.Tensor]
BLOCK = (32, 32)
LARGEST = 448.0  # of float8_e4m3fn

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": list(BLOCK)}
AUTO_FP8 = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}
FBGEMM = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]}


def compressed(strategy: str, **weights: Any) -> dict[str, Any]:
    """Return a config as llm-compressor writes it."""
    stated = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "strategy": strategy}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "sparsity_config": {},
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**stated, **weights},
                "input_activations": {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token"},
            }
        },
    }


def block_shape(strategy: str, rows: int, columns: int) -> tuple[int, int]:
    return {"tensor": (rows, columns), "channel": (1, columns), "block": BLOCK}[strategy]


def quantize(weight: torch.Tensor, strategy: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float8 values and a scale for each block; blocks at the edges may be smaller."""
    rows, columns = weight.shape
    height, width = block_shape(strategy, rows, columns)
    scales = torch.empty(-(-rows // height), -(-columns // width))
    values = torch.empty_like(weight)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            block = np.s_[i * height : (i + 1) * height, j * width : (j + 1) * width]
            scales[i, j] = weight[block].abs().max() / LARGEST
            values[block] = weight[block] / scales[i, j]
    return values.to(torch.float8_e4m3fn), scales


def quantized_checkpoint(
    path: Path, config: dict[str, Any], strategy: str, suffix: str, scale_shape: str = "grid", **shape: Any
) -> tuple[Path, dict[str, np.ndarray[Any, Any]]]:
    """Make a tiny Llama with FP8 matrices, and return its path and its dequantized tensors, float32."""
    make_checkpoint(path, **shape)
    state, dequantized = {}, {}
    for name, tensor in load_file(path / "model.safetensors").items():
        state[name] = tensor
        dequantized[name] = tensor.numpy()
        if "_proj" not in name:
            continue
        state[name], scale = quantize(tensor, strategy)
        height, width = block_shape(strategy, *tensor.shape)
        full = scale.repeat_interleave(height, 0).repeat_interleave(width, 1)
        dequantized[name] = (state[name].float() * full[: tensor.shape[0], : tensor.shape[1]]).numpy()
        state[name + suffix] = scale.reshape({"grid": scale.shape, "one": (1,), "scalar": ()}[scale_shape])
        if config.get("activation_scheme") == "static":
            state[name.replace("weight", "input_scale")] = torch.tensor(0.5)
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    edit_config(path, quantization_config=config)
    return path, dequantized


CASES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "DeepSeek and Qwen3, blocks": (FP8, "block", "_scale_inv", "grid"),
    "AutoFP8, one scale": (AUTO_FP8, "tensor", "_scale", "scalar"),
    "fbgemm, rows": (FBGEMM, "channel", "_scale", "grid"),
    "compressed-tensors, one scale": (compressed("tensor"), "tensor", "_scale", "one"),
    "compressed-tensors, rows": (compressed("channel"), "channel", "_scale", "grid"),
    "compressed-tensors, blocks": (
        compressed("block", block_structure=list(BLOCK)), "block", "_scale", "grid",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_matrix_is_multiplied_by_its_scales(case: str, tmp_path: Path) -> None:
    path, dequantized = quantized_checkpoint(tmp_path / "piglet", *CASES[case], intermediate_size=80)
    with Checkpoint.open(path) as checkpoint:
        assert "quantization_config" not in checkpoint.config
        assert len(checkpoint.notes) == 1
        assert "14 matrices of float8" in checkpoint.notes[0]
        assert "float32" in checkpoint.notes[0]
        assert set(checkpoint.tensors) == set(dequantized)
        for name, values in dequantized.items():
            tensor = checkpoint.tensors[name]
            assert tensor.dtype == "F32"
            slabs = [tensor.read(start, stop) for start, stop in tensor.slabs(7 * tensor.row_elements)]
            np.testing.assert_array_equal(np.concatenate(slabs), values, err_msg=name)


def test_the_gguf_is_the_same_as_from_dequantized_weights(tmp_path: Path) -> None:
    path, dequantized = quantized_checkpoint(tmp_path / "piglet", FP8, "block", "_scale_inv")
    pigguf.convert(path, tmp_path / "ours.gguf", type="Q8_0")
    state = {name: torch.from_numpy(values) for name, values in dequantized.items()}
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    edit_config(path, quantization_config=...)
    pigguf.convert(path, tmp_path / "plain.gguf", type="Q8_0")
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()


def test_transformers_own_dequantization_gives_the_same(tmp_path: Path) -> None:
    """Compare with Fp8Dequantize on load (dequantize: true) in float32, which needs complete blocks."""
    path, _ = quantized_checkpoint(tmp_path / "piglet", FP8, "block", "_scale_inv", intermediate_size=96)
    with Checkpoint.open(path) as checkpoint:
        ours = {name: tensor.load() for name, tensor in checkpoint.tensors.items()}
    edit_config(path, quantization_config={**FP8, "dequantize": True, "modules_to_not_convert": ["lm_head"]})
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    for name, values in model.state_dict().items():
        np.testing.assert_array_equal(ours[name], values.numpy(), err_msg=name)


def test_the_command_prints_the_note(tmp_path: Path) -> None:
    path, _ = quantized_checkpoint(tmp_path / "piglet", FBGEMM, "channel", "_scale")
    done = CliRunner().invoke(cli, ["convert", str(path), "--dry-run"], catch_exceptions=False)
    assert "14 matrices of float8 (fbgemm_fp8)" in " ".join(done.stdout.split())
    done = CliRunner().invoke(cli, ["convert", str(path), "--dry-run", "--json"], catch_exceptions=False)
    assert any("14 matrices of float8" in note for note in json.loads(done.stdout)["notes"])


def test_a_checkpoint_that_is_not_quantized_has_no_note(tmp_path: Path) -> None:
    with Checkpoint.open(make_checkpoint(tmp_path / "piglet")) as checkpoint:
        assert checkpoint.notes == ()


# ---- errors ----------------------------------------------------------------------------------------


def assert_error(path: Path, error: type[PigError], *words: str) -> None:
    with pytest.raises(error) as raised:
        Checkpoint.open(path)
    assert type(raised.value) is error
    for word in words:
        assert word in raised.value.message
    assert "\n" not in raised.value.message
    assert raised.value.hint


UNSUPPORTED_METHODS: list[dict[str, Any]] = [
    {"quant_method": "gptq", "bits": 4, "group_size": 128},
    {"quant_method": "awq", "bits": 4, "version": "gemm"},
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
    {"quant_method": "mxfp4"},
    {"quant_method": "hqq"},
    {"quant_method": "a method of tomorrow"},
]


@pytest.mark.parametrize("config", UNSUPPORTED_METHODS, ids=lambda config: config["quant_method"])
def test_other_methods_are_refused_by_name(config: dict[str, Any], tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "piglet")
    edit_config(path, quantization_config=config)
    assert_error(
        path, UnsupportedModel, "config.json: quantization_config.quant_method", config["quant_method"]
    )


BAD_CONFIGS: list[tuple[dict[str, Any], type[PigError], list[str]]] = [
    ({**FP8, "quant_method": None}, CheckpointError, ["lacks quantization_config.quant_method"]),
    ({**FP8, "fmt": "e5m2"}, UnsupportedModel, ["quantization_config.fmt", "e5m2"]),
    ({**FP8, "expert_dtype": "fp4"}, UnsupportedModel, ["expert_dtype", "fp4"]),
    ({**FP8, "weight_block_size": [128]}, CheckpointError, ["weight_block_size", "[128]"]),
    ({**FP8, "weight_block_size": [128, 128]}, InvalidTensor, ["_scale_inv", "[2, 3]", "[128, 128]"]),
    ({**compressed("block"), "format": "pack-quantized"}, UnsupportedModel, ["format", "pack-quantized"]),
    ({**compressed("block"), "config_groups": None}, UnsupportedModel, ["lacks", "config_groups"]),
    ({**compressed("block"), "kv_cache_scheme": {"num_bits": 8}}, UnsupportedModel, ["kv_cache_scheme"]),
    (compressed("group"), UnsupportedModel, ["group_0.weights.strategy", "group"]),
    (compressed("block", num_bits=4), UnsupportedModel, ["group_0.weights.num_bits = 4"]),
    (compressed("block", type="int"), UnsupportedModel, ["group_0.weights.type", "int"]),
]


@pytest.mark.parametrize(("config", "error", "words"), BAD_CONFIGS, ids=lambda value: str(value)[:60])
def test_unsupported_settings_are_refused_by_their_key(
    config: dict[str, Any], error: type[PigError], words: list[str], tmp_path: Path
) -> None:
    path, _ = quantized_checkpoint(tmp_path / "piglet", FP8, "block", "_scale_inv")
    edit_config(path, quantization_config=config)
    assert_error(path, error, *words)


UP = "model.layers.1.mlp.up_proj.weight"


def without_scale(state: State) -> None:
    del state[f"{UP}_scale_inv"]


def without_weight(state: State) -> None:
    del state[UP]


def plain_weight(state: State) -> None:
    state[UP] = state[UP].to(torch.bfloat16)


def two_scales(state: State) -> None:
    state[f"{UP}_scale"] = state[f"{UP}_scale_inv"].clone()


def integer_scale(state: State) -> None:
    state[f"{UP}_scale_inv"] = state[f"{UP}_scale_inv"].to(torch.uint8)


def other_grid(state: State) -> None:
    state[f"{UP}_scale_inv"] = state[f"{UP}_scale_inv"].T.contiguous()


@pytest.mark.parametrize(
    ("corrupt", "error", "words"),
    [
        (without_scale, MissingTensor, [UP, "F8_E4M3"]),
        (without_weight, InvalidTensor, [f"{UP}_scale_inv", "is missing"]),
        (plain_weight, InvalidTensor, [f"{UP}_scale_inv", "is stored as BF16"]),
        (two_scales, InvalidTensor, [UP, "two scales"]),
        (integer_scale, InvalidTensor, [f"{UP}_scale_inv", "U8"]),
        (other_grid, InvalidTensor, [f"{UP}_scale_inv", "[2, 3]", "[96, 64]"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_weights_and_scales_that_do_not_fit_are_named(
    corrupt: Callable[[State], None], error: type[PigError], words: list[str], tmp_path: Path
) -> None:
    path, _ = quantized_checkpoint(tmp_path / "piglet", FP8, "block", "_scale_inv")
    state = load_file(path / "model.safetensors")
    corrupt(state)
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    assert_error(path, error, str(path), *words)


def test_a_value_that_is_not_a_number_is_named(tmp_path: Path) -> None:
    path, _ = quantized_checkpoint(tmp_path / "piglet", FP8, "block", "_scale_inv")
    state = load_file(path / "model.safetensors")
    state[UP].view(torch.uint8)[3, 5] = 0x7F  # NaN in float8_e4m3fn
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidTensor, match=r"blk.1.ffn_up.weight: element \[3, 5\] is nan"):
        pigguf.convert(path, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()
