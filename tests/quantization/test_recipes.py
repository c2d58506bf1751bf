"""Every recipe against llama_model_quantize: the type and the bytes of every tensor, shape after shape."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from pigguf.arch import family_of
from pigguf.gguf_file import (
    PlannedTensor,
    TensorData,
    TensorType,
    block_elements,
    read_header,
    row_bytes,
    write_gguf,
)
from pigguf.metadata import Typed, f32, string, u32
from pigguf.quantization import RECIPES, choose_types, encode, float_tensors
from pigguf.quantization.kernels import FLOATS
from pigguf.tensors import SLAB_ELEMENTS, TensorRef


@dataclass(frozen=True)
class Shape:
    """A Llama-shaped model. `rows` cuts every matrix down to so many rows, which no choice of types sees."""

    layers: int = 2
    width: int = 256
    feed_forward: int = 512
    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 64
    vocab: int = 96
    tied: bool = False
    architecture: str = "llama"
    rows: int | None = None

    def metadata(self) -> dict[str, Typed]:
        numbers = {
            "vocab_size": self.vocab,
            "context_length": 128,
            "embedding_length": self.width,
            "block_count": self.layers,
            "feed_forward_length": self.feed_forward,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            "rope.dimension_count": self.head_dim,
        }
        return {
            "general.architecture": string(self.architecture),
            **{f"{self.architecture}.{key}": u32(number) for key, number in numbers.items()},
            f"{self.architecture}.attention.layer_norm_rms_epsilon": f32(1e-5),
            f"{self.architecture}.rope.freq_base": f32(10000.0),
        }

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (self.vocab, self.width)}
        for layer in range(self.layers):
            of_layer: dict[str, tuple[int, ...]] = {
                "attn_norm.weight": (self.width,),
                "attn_q.weight": (queries, self.width),
                "attn_k.weight": (keys, self.width),
                "attn_v.weight": (keys, self.width),
                "attn_output.weight": (self.width, queries),
                "ffn_norm.weight": (self.width,),
                "ffn_gate.weight": (self.feed_forward, self.width),
                "ffn_up.weight": (self.feed_forward, self.width),
                "ffn_down.weight": (self.width, self.feed_forward),
            }
            if self.architecture == "qwen2":
                of_layer |= {"attn_q.bias": (queries,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
            shapes |= {f"blk.{layer}.{name}": shape for name, shape in of_layer.items()}
        shapes["output_norm.weight"] = (self.width,)
        if not self.tied:
            shapes["output.weight"] = (self.vocab, self.width)
        if self.rows is None:
            return shapes
        return {name: (self.rows, s[1]) if len(s) == 2 else s for name, s in shapes.items()}


THIN = 3
SHAPES = {
    "two layers": Shape(),
    "tied": Shape(tied=True, rows=THIN),
    "8 layers, 3 query heads a kv head": Shape(layers=8, heads=3, kv_heads=1, rows=THIN),
    "30 layers, 4 query heads a kv head, tied": Shape(layers=30, kv_heads=1, tied=True, rows=THIN),
    "33 layers, 8 query heads a kv head": Shape(layers=33, heads=8, kv_heads=1, head_dim=32, rows=THIN),
    "70B": Shape(layers=80, heads=8, kv_heads=1, head_dim=32, rows=THIN),
    "70B with 2 query heads a kv head": Shape(layers=80, kv_heads=2, rows=THIN),
    "65B": Shape(layers=80, rows=THIN),
    "qwen2": Shape(architecture="qwen2", kv_heads=1, tied=True, rows=THIN),
    "qwen2 72B": Shape(architecture="qwen2", layers=80, rows=THIN),
    "rows of 288": Shape(width=288, feed_forward=320, head_dim=72, rows=THIN),
    "rows of 288, tied": Shape(width=288, feed_forward=320, head_dim=72, tied=True, rows=THIN),
    "rows of 272": Shape(width=272, feed_forward=304, heads=4, head_dim=68, rows=THIN),
    "rows of 272, tied": Shape(width=272, feed_forward=304, heads=4, head_dim=68, tied=True, rows=THIN),
    "rows of 256 but in attn_output": Shape(layers=8, heads=3, kv_heads=3, head_dim=32, rows=THIN),
    "rows of 256 but in ffn_down": Shape(layers=8, feed_forward=272, rows=THIN),
    "matrices of one row": Shape(rows=1),
}


def weights(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Normal weights whose scale differs from row to row, with a few outliers."""
    values = rng.normal(scale=0.02, size=shape) * rng.choice([1e-3, 1, 2], size=(*shape[:-1], 1))
    values.reshape(-1)[:: max(1, values.size // 7)] *= 30
    return values


def planned(tensor: TensorRef, kind: TensorType) -> PlannedTensor:
    slabs = tuple(tensor.slabs(SLAB_ELEMENTS))
    return PlannedTensor(
        tensor.name, tensor.shape, kind, slabs, lambda start, stop: encode(tensor.read(start, stop), kind)
    )


def write_floats(path: Path, shape: Shape, stored: TensorType) -> Path:
    """A GGUF as convert makes it: matrices in a float type, all else F32."""
    rng = np.random.default_rng(11)
    tensors = []
    for name, size in shape.tensor_shapes().items():
        matrix = len(size) > 1 and size[0] > 1
        values = weights(size, rng).astype(FLOATS[stored if matrix else TensorType.F32])
        tensor = TensorRef(name, size, "", lambda start, stop, values=values: values[start:stop])
        tensors.append(planned(tensor, stored if matrix else TensorType.F32))
    write_gguf(path, shape.metadata(), tensors)
    return path


def contents(path: Path) -> dict[str, tuple[TensorType, bytes]]:
    file = read_header(path)
    with TensorData(file) as data:
        return {t.name: (t.type, data.rows(t, 0, t.rows).tobytes()) for t in file.tensors.values()}


def ours(source: Path, recipe_name: str) -> dict[str, tuple[TensorType, bytes]]:
    recipe, file = RECIPES[recipe_name], read_header(source)
    spec = family_of(file.architecture).spec_from_metadata(file.metadata)
    with TensorData(file) as data, ThreadPoolExecutor() as pool:
        tensors = float_tensors(file, data)
        types = choose_types(recipe, spec, tensors)
        encoded = pool.map(lambda tensor: encode(tensor.load(), types[tensor.name]).tobytes(), tensors)
        return {tensor.name: (types[tensor.name], raw) for tensor, raw in zip(tensors, encoded, strict=True)}


def upstream_file_type(recipe_name: str) -> int:
    name = "ALL_F32" if recipe_name == "F32" else f"MOSTLY_{recipe_name}"
    return int(getattr(llama_cpp, f"LLAMA_FTYPE_{name}"))


def llamas(source: Path, target: Path, recipe_name: str) -> dict[str, tuple[TensorType, bytes]]:
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = 2
    parameters.ftype = upstream_file_type(recipe_name)
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), parameters) == 0
    return contents(target)


def assert_equal(source: Path, recipe_name: str) -> None:
    wanted = llamas(source, source.with_suffix(".llama.gguf"), recipe_name)
    got = ours(source, recipe_name)
    types = {name: kind.name for name, (kind, _) in got.items()}
    assert types == {name: kind.name for name, (kind, _) in wanted.items()}
    differing = [name for name, (_, raw) in wanted.items() if got[name][1] != raw]
    assert differing == []


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """source(shape's name, stored type) -> a GGUF, made once."""
    folder = tmp_path_factory.mktemp("sources")
    made: dict[tuple[str, TensorType], Path] = {}

    def source(shape: str, stored: TensorType) -> Path:
        if (shape, stored) not in made:
            path = folder / f"{len(made)}.gguf"
            made[shape, stored] = write_floats(path, SHAPES[shape], stored)
        return made[shape, stored]

    return source


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("stored", FLOATS, ids=lambda kind: kind.name)
def test_bytes_equal_llama_model_quantize_from_every_float_type(
    sources: Any, recipe: str, stored: TensorType
) -> None:
    assert_equal(sources("two layers", stored), recipe)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "two layers"])
def test_bytes_equal_llama_model_quantize_on_every_shape(sources: Any, recipe: str, shape: str) -> None:
    stored = TensorType.F32 if SHAPES[shape].rows == 1 else TensorType.BF16  # convert keeps one row F32
    assert_equal(sources(shape, stored), recipe)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_bytes_equal_llama_model_quantize_on_the_real_model(
    smollm2_gguf: Path, tmp_path: Path, recipe: str
) -> None:
    file = read_header(smollm2_gguf)
    source = tmp_path / "bf16.gguf"
    spec = family_of(file.architecture).spec_from_metadata(file.metadata)
    with TensorData(file) as data:
        tensors = float_tensors(file, data)
        types = choose_types(RECIPES["BF16"], spec, tensors)
        write_gguf(source, file.metadata, [planned(tensor, types[tensor.name]) for tensor in tensors])
    assert_equal(source, recipe)


def test_file_types_are_llama_cpps_numbers() -> None:
    assert {name: recipe.file_type for name, recipe in RECIPES.items()} == {
        name: upstream_file_type(name) for name in RECIPES
    }


LLAMA_8B = Shape(32, 4096, 14336, 32, 8, 128, 128256)


def types_of(shape: Shape, recipe: str) -> dict[str, tuple[tuple[int, ...], TensorType]]:
    tensors = [
        TensorRef(name, size, "BF16", lambda a, b: None) for name, size in shape.tensor_shapes().items()
    ]
    spec = family_of(shape.architecture).spec_from_metadata(shape.metadata())
    types = choose_types(RECIPES[recipe], spec, tensors)
    return {tensor.name: (tensor.shape, types[tensor.name]) for tensor in tensors}


@pytest.mark.parametrize("recipe", RECIPES)
def test_bits_per_weight_are_those_of_llama_8b(recipe: str) -> None:
    weights = nbytes = 0
    for size, kind in types_of(LLAMA_8B, recipe).values():
        weights += int(np.prod(size))
        nbytes += row_bytes(kind, size[-1]) * int(np.prod(size[:-1]))
    assert nbytes * 8 / weights == pytest.approx(RECIPES[recipe].bits_per_weight, abs=0.06)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_fallbacks_are_the_types_that_only_the_shape_explains(recipe: str, shape: str) -> None:
    block = block_elements(RECIPES[recipe].default)
    for name, (size, kind) in types_of(SHAPES[shape], recipe).items():
        fits = kind is TensorType.F32 or size[-1] % block == 0
        assert RECIPES[recipe].is_fallback(kind) is not fits, name
