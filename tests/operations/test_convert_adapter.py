"""convert --adapter from end to end: what it writes, whose positions it takes, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file
from support.adapters import ALL_LINEAR, make_adapter
from support.tiny_checkpoints import edit_config, make_checkpoint

import pigguf
from pigguf.checkpoint import Adapter, Checkpoint, merge_adapter, write_safetensors
from pigguf.cli import cli
from pigguf.errors import CheckpointError, InvalidTensor, RopeConflict, UsageError
from pigguf.gguf_io import TensorData, read_header
from pigguf.gguf_io.metadata import f32, string, u32
from pigguf.rope import RopeOverrides

LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
EXTENDED = {"rope_parameters": LINEAR, "max_position_embeddings": 256}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "piglet")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return make_adapter(base, tmp_path / "long", rope=EXTENDED)


# ---- what is written -----------------------------------------------------------------------------


def test_the_file_has_the_extended_window_and_names_its_base_model(base: Path, adapter: Path) -> None:
    result = pigguf.convert(base, base.parent / "model.gguf", adapter=adapter, type="F32")
    metadata = read_header(base.parent / "model.gguf").metadata
    assert metadata["llama.rope.scaling.type"] == string("linear")
    assert metadata["llama.rope.scaling.factor"] == f32(4.0)
    assert metadata["llama.rope.scaling.original_context_length"] == u32(64)
    assert metadata["llama.context_length"] == u32(256)
    assert metadata["general.name"] == string("piglet-long")
    assert metadata["general.base_model.count"] == u32(1)
    assert metadata["general.base_model.0.name"] == string("piglet")
    assert result.plan.adapter is not None
    assert (result.plan.adapter.lora_matrices, result.plan.adapter.ranks) == (8, (4,))


def test_without_an_adapter_no_base_is_named(base: Path) -> None:
    pigguf.convert(base, base.parent / "model.gguf", type="F32")
    assert not any("base_model" in key for key in read_header(base.parent / "model.gguf").metadata)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("type", ["F32", "BF16", "Q8_0"])
def test_the_weights_are_those_of_the_merged_checkpoint_converted(
    type: str, family: str, tmp_path: Path
) -> None:
    """Merging while streaming gives the bytes that merging first and converting after gives."""
    base = make_checkpoint(tmp_path / "piglet", family)
    adapter = make_adapter(base, tmp_path / "long", target_modules=ALL_LINEAR, modules_to_save=["norm"])
    first = tmp_path / "merged"
    first.mkdir()
    with Checkpoint.open(base) as checkpoint, Adapter.open(adapter) as opened:
        tensors = list(merge_adapter(checkpoint, opened).values())
        write_safetensors(first / "model.safetensors", tensors, "F32")
    for file in base.iterdir():
        if file.suffix != ".safetensors":
            (first / file.name).symlink_to(file)
    pigguf.convert(first, tmp_path / "two-steps.gguf", type=type)
    pigguf.convert(base, tmp_path / "one-pass.gguf", adapter=adapter, type=type)
    two_steps, one_pass = read_header(tmp_path / "two-steps.gguf"), read_header(tmp_path / "one-pass.gguf")
    assert list(one_pass.tensors) == list(two_steps.tensors)
    with TensorData(two_steps) as wanted, TensorData(one_pass) as found:
        for name, tensor in two_steps.tensors.items():
            rows = tensor.shape[0]
            np.testing.assert_array_equal(
                found.rows(one_pass.tensors[name], 0, rows), wanted.rows(tensor, 0, rows), err_msg=name
            )


@pytest.mark.parametrize(
    ("options", "own_output"), [({}, False), ({"modules_to_save": ["embed_tokens"]}, True)], ids=str
)
def test_an_output_matrix_appears_where_the_adapter_parts_it_from_the_embedding(
    options: dict[str, Any], own_output: bool, tmp_path: Path
) -> None:
    base = make_checkpoint(tmp_path / "piglet", tie_word_embeddings=True)
    adapter = make_adapter(base, tmp_path / "long", **options)
    pigguf.convert(base, tmp_path / "model.gguf", adapter=adapter, type="F32")
    assert ("output.weight" in read_header(tmp_path / "model.gguf").tensors) == own_output


@pytest.mark.parametrize(
    ("directory", "name"), [("long", "piglet-long"), ("Piglet-32k", "Piglet-32k")], ids=str
)
def test_the_name_is_both_names_or_the_adapters_where_that_has_the_bases_in_it(
    directory: str, name: str, base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    adapter.rename(directory)
    result = pigguf.convert("piglet", adapter=directory, type="Q8_0")
    assert result.plan.name == name
    assert result.path == Path(f"{name}-Q8_0.gguf")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["convert", *map(str, arguments)], catch_exceptions=False)


def test_a_dry_run_shows_what_would_be_merged_and_where_the_window_comes_from(
    base: Path, adapter: Path
) -> None:
    before = sorted(os.listdir(base.parent))
    shown = run(base, "--adapter", adapter, "--dry-run").stdout
    assert "long: rank 4 in 8 matrices" in shown
    assert "long/config.json: rope_parameters.factor" in shown
    assert "256 tokens" in shown
    data = json.loads(run(base, "--adapter", adapter, "--dry-run", "--json").stdout)
    assert data["adapter"] == {
        "path": str(adapter),
        "name": "long",
        "base": str(base),
        "ranks": [4],
        "matrices": 8,
        "replaced": [],
    }
    sources = {(found["source"], found["key"]) for found in data["evidence"]}
    assert ("long/config.json", "max_position_embeddings") in sources
    assert ("config.json", "max_position_embeddings") in sources
    assert sorted(os.listdir(base.parent)) == before
    assert json.loads(run(base, "--dry-run", "--json").stdout)["adapter"] is None


def test_an_adapter_of_safetensors_brings_no_torch(base: Path, adapter: Path) -> None:
    code = (
        "import sys, pigguf; pigguf.convert(sys.argv[1], sys.argv[3], adapter=sys.argv[2]);"
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(base), str(adapter), str(base.parent / "model.gguf")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == "False"


# ---- positions -----------------------------------------------------------------------------------


def rope_of(base: Path, adapter: Path, **overrides: Any) -> tuple[float, int, int]:
    result = pigguf.convert(base, adapter=adapter, rope=RopeOverrides(**overrides), dry_run=True)
    rope = result.plan.rope
    return rope.factor, rope.original_context, rope.context_length


def test_an_adapter_without_a_config_leaves_the_bases_positions(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "plain")
    assert rope_of(base, adapter) == (1.0, 64, 64)
    edit_config(base, **EXTENDED, original_max_position_embeddings=64)
    assert rope_of(base, adapter) == (4.0, 64, 256)


def test_a_base_that_is_extended_already_may_say_the_same(base: Path, adapter: Path) -> None:
    edit_config(base, **EXTENDED, original_max_position_embeddings=64)
    assert rope_of(base, adapter) == (4.0, 64, 256)
    edit_config(base, rope_parameters=..., rope_scaling={"type": "linear", "factor": 4.0})
    assert rope_of(base, adapter) == (4.0, 64, 256)


def test_an_adapter_that_extends_nothing_may_say_so(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "plain", rope={})
    assert (adapter / "config.json").exists()
    assert rope_of(base, adapter) == (1.0, 64, 64)


def test_older_dialects_mean_the_same(base: Path, adapter: Path) -> None:
    """LongLoRA's: rope_scaling, and the original window in max_position_embeddings."""
    edit_config(
        adapter,
        rope_parameters=...,
        rope_scaling={"type": "linear", "factor": 4.0},
        max_position_embeddings=64,
    )
    assert rope_of(base, adapter) == (4.0, 64, 256)
    edit_config(base, rope_parameters=..., rope_theta=10000.0)
    assert rope_of(base, adapter) == (4.0, 64, 256)


SCALED = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
# changes to the base's config, to the adapter's, and what the message must name
CONTRADICTIONS: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    ({"rope_parameters": SCALED, "max_position_embeddings": 128}, {}, ["factor = 2.0", "factor = 4.0"]),
    ({"max_position_embeddings": 128}, {}, ["max_position_embeddings = 128", "factor = 4.0"]),
    ({"rope_parameters": {**PLAIN, "rope_theta": 500000.0}}, {}, ["rope_theta = 500000.0", "= 10000.0"]),
    (
        {"rope_parameters": {"rope_type": "default"}},
        {"rope_parameters": {**LINEAR, "rope_theta": 5e5}},
        ["5"],
    ),
    ({}, {"rope_parameters": {**LINEAR, "factor": 8.0}}, ["factor = 8.0", "max_position_embeddings"]),
    ({}, {"original_max_position_embeddings": 128}, ["= 64", "original_max_position_embeddings = 128"]),
    ({}, {"rope_parameters": PLAIN}, ["max_position_embeddings = 64", "max_position_embeddings = 256"]),
    (
        {"rope_parameters": LINEAR, "max_position_embeddings": 256},
        {"rope_parameters": PLAIN},
        ["linear", "default"],
    ),
    (
        {"rope_parameters": LINEAR, "max_position_embeddings": 256},
        {"rope_parameters": ...},
        ["linear", "rope_scaling = null"],
    ),
]


@pytest.mark.parametrize(("of_base", "of_adapter", "words"), CONTRADICTIONS, ids=lambda v: str(v)[:50])
def test_positions_that_contradict_each_other_stop_the_work(
    of_base: dict[str, Any], of_adapter: dict[str, Any], words: list[str], base: Path, adapter: Path
) -> None:
    edit_config(base, **of_base)
    edit_config(adapter, **of_adapter)
    with pytest.raises(RopeConflict) as raised:
        pigguf.convert(base, base.parent / "model.gguf", adapter=adapter)
    for word in [*words, "long/config.json: "]:
        assert word in raised.value.message
    assert raised.value.message.replace("long/config.json", "").count("config.json: ")
    assert raised.value.hint
    assert not (base.parent / "model.gguf").exists()


def test_overrides_replace_both_and_must_fit_the_rest(base: Path, adapter: Path) -> None:
    with pytest.raises(RopeConflict, match=r"`rope.factor=8.0`.*long/config.json: max_position_embeddings"):
        rope_of(base, adapter, factor=8.0)
    assert rope_of(base, adapter, factor=8.0, original_context=64, context=512) == (8.0, 64, 512)
    edit_config(base, max_position_embeddings=128)
    with pytest.raises(RopeConflict):
        rope_of(base, adapter)
    assert rope_of(base, adapter, original_context=64) == (4.0, 64, 256)


# ---- bad input -----------------------------------------------------------------------------------


def test_a_bad_adapter_harms_nothing(base: Path, adapter: Path) -> None:
    target = base.parent / "model.gguf"
    target.write_bytes(b"precious")
    tensors = load_file(adapter / WEIGHTS)
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    tensors[name][3, 1] = np.nan
    save_file(tensors, adapter / WEIGHTS)
    before = sorted(os.listdir(base.parent))
    with pytest.raises(InvalidTensor) as raised:
        pigguf.convert(base, target, adapter=adapter, type="Q8_0")
    assert raised.value.message == f"{adapter / WEIGHTS}: {name}: element [3, 1] is nan, not a finite number"
    assert target.read_bytes() == b"precious"
    assert sorted(os.listdir(base.parent)) == before


def test_an_adapter_instead_of_a_model_is_an_error_with_the_right_command(adapter: Path) -> None:
    with pytest.raises(CheckpointError, match="has an adapter") as raised:
        pigguf.convert(adapter)
    assert f"pigguf convert BASE --adapter {adapter}" in (raised.value.hint or "")


def test_no_file_of_the_adapter_is_overwritten(base: Path, adapter: Path) -> None:
    before = (adapter / WEIGHTS).read_bytes()
    with pytest.raises(UsageError, match="is a file of the adapter"):
        pigguf.convert(base, adapter / WEIGHTS, adapter=adapter)
    assert (adapter / WEIGHTS).read_bytes() == before


def test_the_command_reports_an_error_in_one_line(base: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pigguf", "convert", str(base), "--adapter", str(tmp_path / "absent")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    first, second = finished.stderr.splitlines()
    assert first == f"error: {tmp_path / 'absent'} is not a directory"
    assert second.startswith("hint: ")
    assert finished.returncode not in (0, 1)
