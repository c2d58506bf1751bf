"""Inspect on files of every kind: what the keys do not determine is omitted."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

import pigguf
from pigguf.cli.inspect import command
from pigguf.errors import GGUFError
from pigguf.gguf_io.metadata import TypedValue, array, boolean, f32, string, u32
from pigguf.rope import Llama3Scaling

SHAPE = {
    "context_length": u32(4096),
    "embedding_length": u32(64),
    "block_count": u32(4),
    "attention.head_count": u32(4),
    "attention.head_count_kv": u32(2),
}


def make(
    path: Path,
    keys: dict[str, TypedValue],
    architecture: str = "pig",
    tensor: str = "token_embd",
    values: np.ndarray | None = None,
) -> Path:
    writer = gguf.GGUFWriter(str(path), architecture)
    for key, (kind, value, is_array) in keys.items():
        name = key if key.startswith("general.") else f"{architecture}.{key}"
        if is_array:
            writer.add_array(name, value)
        else:
            {"u32": writer.add_uint32, "f32": writer.add_float32, "bool": writer.add_bool}.get(
                kind, writer.add_string
            )(name, value)
    writer.add_tensor(f"{tensor}.weight", np.zeros((4, 32), np.float32) if values is None else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_cache_size_of_plain_attention_is_shown(tmp_path: Path) -> None:
    """A row of 2 heads of 16 for K and one for V, in 4 layers, of 2 bytes each."""
    report = pigguf.inspect(make(tmp_path / "m.gguf", SHAPE))
    assert report.cache[0].bytes_per_token == 2 * 2 * 16 * 4 * 2
    assert report.cache[0].bytes_at_full_window == report.cache[0].bytes_per_token * 4096
    assert report.position_notes == ()


@pytest.mark.parametrize(("width", "types"), [(64, ["F16"]), (128, ["F16", "Q8_0", "Q4_0"]), (160, ["F16"])])
def test_a_cache_type_is_shown_only_if_heads_are_whole_blocks(
    width: int, types: list[str], tmp_path: Path
) -> None:
    """Heads of 16, 32 and 40: llama.cpp's quantized types have blocks of 32."""
    report = pigguf.inspect(make(tmp_path / "m.gguf", {**SHAPE, "embedding_length": u32(width)}))
    assert [size.type for size in report.cache] == types


@pytest.mark.parametrize(
    "keys",
    [
        {"attention.sliding_window": u32(512)},
        {"attention.head_count_kv": array("u32", (0, 2, 0, 2))},
        {"attention.head_count": array("u32", (4, 4, 8, 8))},
        {"attention.kv_lora_rank": u32(512)},
        {"ssm.state_size": u32(16)},
        {"wkv.head_size": u32(64)},
        {"attention.causal": boolean(False)},
        {"attention.head_count": u32(0)},
    ],
    ids=str,
)
def test_a_cache_that_the_keys_do_not_determine_is_omitted(
    keys: dict[str, TypedValue], tmp_path: Path
) -> None:
    report = pigguf.inspect(make(tmp_path / "m.gguf", {**SHAPE, **keys}))
    assert report.cache == ()
    if "attention.head_count_kv" in keys:
        assert report.kv_heads is None
    assert CliRunner().invoke(command, [str(report.path)]).exit_code == 0


def test_a_window_that_only_the_graph_knows_counts_too(tmp_path: Path) -> None:
    assert pigguf.inspect(make(tmp_path / "m.gguf", SHAPE, architecture="llama4")).cache == ()


def test_learned_positions_have_a_note(tmp_path: Path) -> None:
    report = pigguf.inspect(make(tmp_path / "m.gguf", SHAPE, tensor="position_embd"))
    assert len(report.position_notes) == 1
    shown = CliRunner().invoke(command, [str(report.path)]).stdout
    assert report.position_notes[0] in shown


LLAMA_3 = Llama3Scaling(
    rope_theta=5e5,
    original_context=8192,
    context_length=4096,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
)


@pytest.mark.parametrize(
    ("tensor", "values", "rope", "explanation"),
    [
        ("rope_freqs", LLAMA_3.tensors(64)["rope_freqs.weight"], "llama3, factor 8, base 500000", "Llama 3"),
        ("rope_freqs", np.full(32, 2, np.float32), "none, factor 1, base 500000", "rope_freqs.weight"),
        ("rope_factors_long", np.full(32, 2, np.float32), "longrope, base 500000", "LongRoPE"),
    ],
)
def test_freq_factor_tensors_are_read_and_shown(
    tensor: str, values: np.ndarray, rope: str, explanation: str, tmp_path: Path
) -> None:
    keys = {**SHAPE, "rope.freq_base": f32(5e5)}
    report = pigguf.inspect(make(tmp_path / "m.gguf", keys, tensor=tensor, values=values))
    assert report.rope is not None
    shown = CliRunner().invoke(command, [str(report.path)]).stdout
    assert rope in shown
    assert explanation in " ".join(shown.split())
    data = json.loads(CliRunner().invoke(command, [str(report.path), "--json"]).stdout)
    assert data["rope"]["kind"] == report.rope.rope_type


@pytest.mark.parametrize("values", [np.zeros((4, 32), np.float32), np.zeros(32, np.float16)])
def test_a_tensor_of_positions_on_which_llama_cpp_aborts_is_refused(
    values: np.ndarray, tmp_path: Path
) -> None:
    path = make(tmp_path / "m.gguf", SHAPE, tensor="rope_freqs", values=values)
    with pytest.raises(GGUFError, match=r"rope_freqs\.weight") as caught:
        pigguf.inspect(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("keys", "rope", "explanation"),
    [
        (
            {"rope.scaling.type": string("yarn"), "rope.scaling.factor": f32(4.0)},
            "yarn, factor 4, base 10000",
            "YaRN",
        ),
        ({"rope.freq_base_swa": f32(1e4), "rope.freq_base": f32(1e6)}, "base 1e+06", "a rope_theta of 10000"),
    ],
)
def test_other_rope_types_are_shown(
    keys: dict[str, TypedValue], rope: str, explanation: str, tmp_path: Path
) -> None:
    path = make(tmp_path / "m.gguf", {**SHAPE, **keys})
    shown = CliRunner().invoke(command, [str(path)]).stdout
    assert rope in shown
    assert explanation in " ".join(shown.split())


def test_a_file_without_a_context_length_is_inspected_too(tmp_path: Path) -> None:
    """A projector or an adapter: nothing of it is damaged."""
    path = make(tmp_path / "m.gguf", {"general.name": string("eyes")}, architecture="clip")
    report = pigguf.inspect(path)
    assert (report.rope, report.cache, report.layers, report.name) == (None, (), None, "eyes")
    assert "not stated" in CliRunner().invoke(command, [str(path)]).stdout
    data = json.loads(CliRunner().invoke(command, [str(path), "--json"]).stdout)
    assert data["rope"] is None
    assert data["context_length"] is None


def test_keys_are_json_whatever_they_hold(tmp_path: Path) -> None:
    path = make(tmp_path / "m.gguf", {**SHAPE, "scale": f32(float("inf"))})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    data = json.loads(
        CliRunner().invoke(command, [str(path), "--keys", "--json"]).stdout, parse_constant=refuse
    )
    assert data["pig.scale"] == "inf"
