"""Which files PyTorch can prefill: those whose keys and tensors are all known, and no others."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
from support.tiny_gguf import GRAPHS, SHAPES, WIDTH, linear, write_tiny

from pigguf.gguf_io import TensorType, read_header
from pigguf.gguf_io.metadata import TypedValue, array, f32, string, u32
from pigguf.inference.engine import ContextOptions, Model
from pigguf.inference.torch_prefill import TorchPrefiller, backend
from pigguf.inference.torch_prefill.supported_models import ModelShape, read_model_shape
from pigguf.rope import rope_from_metadata


def shape_of(path: Path) -> ModelShape | None:
    file = read_header(path)
    return read_model_shape(file, rope_from_metadata(file.metadata, file.architecture))


def test_a_llamas_dimensions_are_read(tmp_path: Path) -> None:
    shape = shape_of(write_tiny(tmp_path / "tiny.gguf", linear(4.0)))
    assert shape is not None
    assert shape == replace(shape, n_layer=2, n_embd=WIDTH, n_ff=96, n_head=4, n_head_kv=2, head_dim=16)
    assert shape.interleaved
    assert shape.gqa_group == 2
    assert shape.layer_elements == sum(
        rows * columns
        for name, (rows, *rest) in SHAPES.items()
        for columns in rest
        if name.startswith("blk.0.")
    )


@pytest.mark.parametrize("name", GRAPHS)
def test_three_architectures_are_supported(name: str, tmp_path: Path) -> None:
    shape = shape_of(write_tiny(tmp_path / "tiny.gguf", model=GRAPHS[name]))
    known = GRAPHS[name].architecture in ("llama", "qwen2", "qwen3") and "Mixtral" not in name
    assert (shape is not None) == known


@pytest.mark.parametrize(
    "metadata",
    [
        {"llama.attention.scale": f32(0.5)},
        {"llama.expert_count": u32(4)},
        {"llama.rope.scaling.yarn_log_multiplier": f32(0.5)},
        {"llama.rope.scaling.type": string("longrope")},
        {"llama.rope.scaling.type": string("yarn"), "llama.rope.scaling.yarn_beta_fast": f32(16)},
        {"llama.feed_forward_length": array("u32", (96, 96))},
    ],
)
def test_a_key_that_is_not_known_leaves_the_file_to_llama_cpp(
    metadata: dict[str, TypedValue], tmp_path: Path
) -> None:
    assert shape_of(write_tiny(tmp_path / "tiny.gguf", metadata)) is None


@pytest.mark.parametrize(
    "shapes",
    [
        {"blk.1.attn_q.scale": (1,)},
        {"blk.1.attn_q_norm.weight": (16,)},
        {"blk.1.attn_q.weight": None},
        {"blk.1.ffn_up.weight": (128, WIDTH)},
        {"rope_factors_long.weight": (8,)},
        {"position_embd.weight": (64, WIDTH)},
    ],
)
def test_a_tensor_that_is_not_known_leaves_the_file_to_llama_cpp(
    shapes: dict[str, tuple[int, ...] | None], tmp_path: Path
) -> None:
    assert shape_of(write_tiny(tmp_path / "tiny.gguf", shapes=shapes)) is None


def test_a_tensor_of_whole_numbers_leaves_the_file_to_llama_cpp(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", types={"output.weight": TensorType.I32})
    assert shape_of(path) is None


# ---- when it is used ---------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Model:
    with Model.open(write_tiny(tmp_path / "tiny.gguf", linear(4.0, 16384)), gpu_layers=0) as model:
        yield model


@pytest.fixture
def with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the CPU has bfloat16 instructions."""
    monkeypatch.setattr(backend, "bfloat16_instructions", lambda: frozenset({"avx512_bf16"}))


@pytest.mark.usefixtures("with_bfloat16")
def test_long_prompts_are_prefilled_and_short_ones_not(model: Model) -> None:
    prefiller = TorchPrefiller(model, ContextOptions(), min_tokens=3000)
    assert prefiller.is_supported
    assert [prefiller.should_prefill(n_past, 3000) for n_past in (0, 9000)] == [True, True]
    assert not prefiller.should_prefill(9000, 2999)


@pytest.mark.usefixtures("with_bfloat16")
@pytest.mark.parametrize("options", [{"cache_k": "q8_0"}, {"cache_v": "q8_0"}])
def test_a_quantized_cache_is_left_to_llama_cpp(model: Model, options: dict[str, str]) -> None:
    assert not TorchPrefiller(model, ContextOptions(**options)).should_prefill(0, 10000)  # type: ignore[arg-type]


def test_a_cpu_without_bfloat16_is_left_to_llama_cpp(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "bfloat16_instructions", frozenset)
    assert not TorchPrefiller(model, ContextOptions()).should_prefill(0, 10000)


@pytest.mark.usefixtures("with_bfloat16")
def test_what_does_not_fit_into_memory_is_left_to_llama_cpp(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefiller = TorchPrefiller(model, ContextOptions())
    assert prefiller.should_prefill(0, 10000)
    monkeypatch.setattr(backend, "available_memory", lambda: 4 << 20)
    assert not prefiller.should_prefill(0, 10000)


@pytest.mark.usefixtures("with_bfloat16")
def test_without_torch_nothing_is_prefilled(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not TorchPrefiller(model, ContextOptions()).should_prefill(0, 10000)
