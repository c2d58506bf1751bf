"""Every recipe against llama_model_quantize: the type and the bytes of every tensor, shape after shape."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from pigguf.architectures import family_by_architecture, hparams_from_metadata
from pigguf.architectures.hparams import HParams
from pigguf.common.lazy_tensor import SLAB_ELEMENTS, LazyTensor
from pigguf.errors import UsageError
from pigguf.gguf_io import (
    PlannedTensor,
    TensorData,
    TensorType,
    block_elements,
    read_header,
    row_bytes,
    write_gguf,
)
from pigguf.gguf_io.metadata import TypedValue, f32, string, u32
from pigguf.operations.convert import plan_tensors
from pigguf.quantization import (
    RECIPES,
    ImportanceMatrix,
    QuantizationParams,
    TensorTypeChoice,
    choose_tensor_types,
    encode,
    float_tensors,
    parse_type_overrides,
)
from pigguf.quantization.ggml_kernels import FLOAT_DTYPES

# Recipes that need an importance matrix, and those whose tables ggml computes for seconds
NEEDS_IMATRIX = ("IQ3_XS", "IQ3_XXS", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")
SLOW = ("IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ1_M", "IQ1_S")
WITHOUT_IMATRIX = [name for name in RECIPES if name not in NEEDS_IMATRIX]
ALL = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in RECIPES]

# Without vectors: no recipe has rules for them, and llama_model_quantize does not need them.
PER_LAYER: dict[str, tuple[str, ...]] = {
    "llama": ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"),
    "fused": ("attn_norm", "attn_qkv", "attn_output", "ffn_up", "ffn_down"),
    "experts": (
        *("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output"),
        *("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"),
    ),
    "shared": (
        *("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps"),
        *("ffn_down_exps", "ffn_gate_inp_shexp", "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"),
    ),
}


@dataclass(frozen=True)
class Shape:
    """A decoder. `rows` limits every matrix to that many rows, which no choice of types depends on."""

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
    per_layer: str = "llama"
    experts: int = 0
    more: tuple[str, ...] = ()

    @property
    def hparams(self) -> HParams:
        known = hparams_from_metadata(
            family_by_architecture("llama"), replace(self, architecture="llama", experts=0).metadata(), {}
        )
        return replace(known, architecture=self.architecture, experts=self.experts)

    def metadata(self) -> dict[str, TypedValue]:
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
        if self.experts:
            numbers |= {"expert_count": self.experts, "expert_used_count": 2}
        return {
            "general.architecture": string(self.architecture),
            **{f"{self.architecture}.{key}": u32(number) for key, number in numbers.items()},
            f"{self.architecture}.attention.layer_norm_rms_epsilon": f32(1e-5),
            f"{self.architecture}.attention.layer_norm_epsilon": f32(1e-5),
            f"{self.architecture}.rope.freq_base": f32(10000.0),
        }

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sizes: dict[str, tuple[int, ...]] = {
            "attn_norm": (self.width,),
            "attn_q": (queries, self.width),
            "attn_k": (keys, self.width),
            "attn_v": (keys, self.width),
            "attn_qkv": (queries + 2 * keys, self.width),
            "attn_output": (self.width, queries),
            "ffn_gate_inp": (max(1, self.experts), self.width),
            "ffn_gate_inp_shexp": (self.width,),
            "ffn_gate": (self.feed_forward, self.width),
            "ffn_up": (self.feed_forward, self.width),
            "ffn_down": (self.width, self.feed_forward),
            "token_embd": (self.vocab, self.width),
            "position_embd": (128, self.width),
            "output_norm": (self.width,),
            "output": (self.vocab, self.width),
        }
        for name in ("ffn_gate", "ffn_up", "ffn_down"):
            sizes |= {f"{name}_shexp": sizes[name], f"{name}_exps": (self.experts, *self.cut(sizes[name]))}
        names = ["token_embd", *self.more, "output_norm"] + ([] if self.tied else ["output"])
        names += [f"blk.{layer}.{name}" for layer in range(self.layers) for name in PER_LAYER[self.per_layer]]
        return {f"{name}.weight": self.cut(sizes[name.rpartition(".")[2]]) for name in names}

    def cut(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.rows, shape[1]) if self.rows and len(shape) == 2 else shape


THIN = 2
SHAPES = {
    "two layers": Shape(rows=80),
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
    "rows of 256 except in attn_output": Shape(layers=8, heads=3, kv_heads=3, head_dim=32, rows=THIN),
    "rows of 256 except in ffn_down": Shape(layers=8, feed_forward=272, rows=THIN),
    "matrices of one row": Shape(rows=1),
    "falcon 7B": Shape(32, 256, 512, 8, 1, 32, architecture="falcon", per_layer="fused", rows=THIN),
    "falcon with 4 kv heads, tied": Shape(
        10, architecture="falcon", per_layer="fused", kv_heads=2, rows=THIN, tied=True
    ),
    "gpt2": Shape(12, architecture="gpt2", per_layer="fused", rows=THIN, tied=True, more=("position_embd",)),
    "bloom, untied, rows of 288": Shape(
        9, 288, 320, 4, 4, 72, architecture="bloom", per_layer="fused", rows=THIN
    ),
    "80 layers that are not a 70B": Shape(80, kv_heads=2, architecture="starcoder2", rows=THIN),
    "Mixtral": Shape(17, 256, 256, 4, 1, experts=8, per_layer="experts", rows=THIN),
    "Mixtral, 2 query heads a kv head": Shape(9, 256, 256, 4, 2, experts=8, per_layer="experts", rows=THIN),
    "4 experts, untied": Shape(10, 256, 256, experts=4, per_layer="experts", rows=THIN),
    "4 experts, tied": Shape(10, 256, 256, experts=4, per_layer="experts", rows=THIN, tied=True),
    "3 experts and a shared one": Shape(9, experts=3, per_layer="shared", architecture="qwen2moe", rows=THIN),
    "experts whose rows are 288": Shape(2, 288, 320, 4, 4, 72, experts=8, per_layer="experts", rows=THIN),
}


# One shape of each kind for every run; all of them together are a slow test.
COMMON = (
    *("8 layers, 3 query heads a kv head", "70B", "qwen2", "rows of 288, tied", "rows of 272"),
    *(
        "falcon with 4 kv heads, tied",
        "gpt2",
        "Mixtral, 2 query heads a kv head",
        "3 experts and a shared one",
    ),
)
EVERY = [name if name in COMMON else pytest.param(name, marks=pytest.mark.slow) for name in SHAPES]


def weights(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return normal weights whose scale differs from row to row, with a few outliers."""
    values = rng.normal(scale=0.02, size=shape) * rng.choice([1e-3, 1, 2], size=(*shape[:-1], 1))
    values.reshape(-1)[:: max(1, values.size // 7)] *= 30
    return values


def planned(tensor: LazyTensor, kind: TensorType) -> PlannedTensor:
    slabs = tuple(tensor.slabs(SLAB_ELEMENTS))
    return PlannedTensor(
        tensor.name, tensor.shape, kind, slabs, lambda start, stop: encode(tensor.read(start, stop), kind)
    )


def write_floats(path: Path, shape: Shape, stored: TensorType) -> Path:
    """Write a GGUF like convert: matrices in a float type, all else F32."""
    rng = np.random.default_rng(11)
    tensors = []
    for name, size in shape.tensor_shapes().items():
        matrix = np.prod(size) > size[-1] and not name.startswith("position_embd") and "_inp" not in name
        values = weights(size, rng).astype(FLOAT_DTYPES[stored if matrix else TensorType.F32])
        values = values if values.ndim == 1 else values.reshape(-1, size[-1])
        tensor = LazyTensor(name, size, "", lambda start, stop, values=values: values[start:stop])
        tensors.append(planned(tensor, stored if matrix else TensorType.F32))
    write_gguf(path, shape.metadata(), tensors)
    return path


def importance_of(shape: Shape, leave_out: str = "") -> ImportanceMatrix:
    """Return importances of different sizes for all matrices of the layers, some of them 0."""
    rng = np.random.default_rng(12)
    weights = {}
    for name, size in shape.tensor_shapes().items():
        if name.startswith("blk.") and len(size) > 1 and size[0] > 1 and name != leave_out:
            columns = (size[0] if len(size) == 3 else 1) * size[-1]
            weights[name] = (
                rng.exponential(size=columns) * rng.choice([0, 1e-3, 1, 1, 40], size=columns)
            ).astype(np.float32)
    return ImportanceMatrix(Path("of-a-shape.gguf"), weights, ("text",), 3)


def contents(path: Path) -> dict[str, tuple[TensorType, bytes]]:
    file = read_header(path)
    with TensorData(file) as data:
        return {t.name: (t.type, data.rows(t, 0, t.rows).tobytes()) for t in file.tensors.values()}


def quantize_with_pigguf(
    source: Path, target: Path, params: QuantizationParams, hparams: HParams
) -> dict[str, tuple[TensorType, bytes]]:
    """Quantize as convert and quantize do."""
    file = read_header(source)
    with TensorData(file) as data:
        tensors = float_tensors(file, data)
        write_gguf(
            target,
            file.metadata,
            plan_tensors(tensors, choose_tensor_types(params, hparams, tensors), params.imatrix),
        )
    return contents(target)


def upstream_file_type(recipe_name: str) -> int:
    name = "ALL_F32" if recipe_name == "F32" else f"MOSTLY_{recipe_name}"
    return int(getattr(llama_cpp, f"LLAMA_FTYPE_{name}"))


def quantize_with_llama_cpp(
    source: Path, target: Path, params: QuantizationParams
) -> dict[str, tuple[TensorType, bytes]]:
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = 2
    parameters.ftype = upstream_file_type(params.recipe.name)
    weights = params.imatrix.weights if params.imatrix else {}
    matrix = (llama_cpp.llama_model_imatrix_data * (len(weights) + 1))()  # ends with an empty name
    for entry, (name, values) in zip(matrix, weights.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    overrides = (llama_cpp.llama_model_tensor_override * (len(params.overrides) + 1))()
    for entry, override in zip(overrides, params.overrides, strict=False):
        entry.pattern, entry.type = override.pattern.pattern.encode(), override.type
    if weights:
        parameters.imatrix = matrix
    if params.overrides:
        parameters.tt_overrides = overrides
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), parameters) == 0
    return contents(target)


def assert_equal(source: Path, params: QuantizationParams, hparams: HParams) -> None:
    expected = quantize_with_llama_cpp(source, source.with_suffix(".llama.gguf"), params)
    actual = quantize_with_pigguf(source, source.with_suffix(".ours.gguf"), params, hparams)
    types = {name: kind.name for name, (kind, _) in actual.items()}
    assert types == {name: kind.name for name, (kind, _) in expected.items()}
    differing = [name for name, (_, raw) in expected.items() if actual[name][1] != raw]
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


@pytest.mark.parametrize("recipe", WITHOUT_IMATRIX)
@pytest.mark.parametrize("stored", FLOAT_DTYPES, ids=lambda kind: kind.name)
def test_bytes_equal_llama_model_quantize_from_every_float_type(
    sources: Any, recipe: str, stored: TensorType
) -> None:
    assert_equal(
        sources("two layers", stored), QuantizationParams(RECIPES[recipe]), SHAPES["two layers"].hparams
    )


@pytest.mark.parametrize("recipe", WITHOUT_IMATRIX)
@pytest.mark.parametrize("shape", EVERY)
def test_bytes_equal_llama_model_quantize_on_every_shape(sources: Any, recipe: str, shape: str) -> None:
    stored = TensorType.F32 if SHAPES[shape].rows == 1 else TensorType.BF16  # convert keeps one row F32
    assert_equal(sources(shape, stored), QuantizationParams(RECIPES[recipe]), SHAPES[shape].hparams)


@pytest.mark.parametrize("recipe", ALL)
@pytest.mark.parametrize("shape", EVERY)
def test_bytes_with_an_importance_matrix_equal_llama_model_quantize_on_every_shape(
    sources: Any, recipe: str, shape: str
) -> None:
    stored = TensorType.F32 if SHAPES[shape].rows == 1 else TensorType.BF16
    params = QuantizationParams(RECIPES[recipe], importance_of(SHAPES[shape]))
    assert_equal(sources(shape, stored), params, SHAPES[shape].hparams)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", WITHOUT_IMATRIX)
def test_bytes_equal_llama_model_quantize_on_the_real_model(
    smollm2_gguf: Path, tmp_path: Path, recipe: str
) -> None:
    file = read_header(smollm2_gguf)
    source = tmp_path / "bf16.gguf"
    hparams = hparams_from_metadata(family_by_architecture(file.architecture), file.metadata, file.tensors)
    with TensorData(file) as data:
        tensors = float_tensors(file, data)
        choices = choose_tensor_types(QuantizationParams(RECIPES["BF16"]), hparams, tensors)
        write_gguf(source, file.metadata, plan_tensors(tensors, choices, None))
    assert_equal(source, QuantizationParams(RECIPES[recipe]), hparams)


def test_file_types_are_llama_cpps_numbers() -> None:
    assert {name: recipe.file_type for name, recipe in RECIPES.items()} == {
        name: upstream_file_type(name) for name in RECIPES
    }


LLAMA_8B = Shape(32, 4096, 14336, 32, 8, 128, 128256)


def choices_of(shape: Shape, recipe: str, with_imatrix: bool) -> list[tuple[LazyTensor, TensorTypeChoice]]:
    tensors = [
        LazyTensor(name, size, "BF16", lambda a, b: None) for name, size in shape.tensor_shapes().items()
    ]
    matrix = importance_of(shape) if with_imatrix else None
    choices = choose_tensor_types(QuantizationParams(RECIPES[recipe], matrix), shape.hparams, tensors)
    return [(tensor, choices[tensor.name]) for tensor in tensors]


@pytest.mark.parametrize("recipe", RECIPES)
def test_bits_per_weight_are_those_of_llama_8b(recipe: str) -> None:
    weights = nbytes = 0
    for tensor, choice in choices_of(LLAMA_8B, recipe, with_imatrix=recipe not in WITHOUT_IMATRIX):
        weights += tensor.elements
        nbytes += row_bytes(choice.type, tensor.shape[-1]) * (tensor.elements // tensor.shape[-1])
    assert nbytes * 8 / weights == pytest.approx(RECIPES[recipe].bits_per_weight, abs=0.06)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_tensor_falls_back_where_its_rows_are_not_whole_blocks(shape: str) -> None:
    for name, recipe in RECIPES.items():
        for tensor, choice in choices_of(SHAPES[shape], name, with_imatrix=True):
            blocks = [choice.preferred]
            if tensor.name == ("token_embd.weight" if SHAPES[shape].tied else "output.weight"):
                blocks.append(recipe.default_type)  # upstream looks at this one
            fits = all(tensor.shape[-1] % block_elements(kind) == 0 for kind in blocks)
            assert choice.is_fallback is not fits, (name, tensor.name)


# ---- types of single tensors ---------------------------------------------------------------------

OVERRIDES = [
    {"ffn_down": "q6_K"},
    {r"blk\.0\.attn_v": "q8_0"},  # upstream's count of attn_v then begins a layer later
    {r"blk\.[0-3]\.": "F16", "ffn_down": "bf16", "token_embd": "q4_0"},
    {"attn_output|ffn_up": "f32", "^output.weight$": "q5_k"},
    {"attn_q": "iq3_s", "weight": "iq4_xs"},
]


@pytest.mark.parametrize("overrides", OVERRIDES, ids=str)
@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q3_K_M", "Q4_0"])
@pytest.mark.parametrize("shape", ["8 layers, 3 query heads a kv head", "4 experts, untied", "rows of 288"])
def test_bytes_with_types_of_single_tensors_equal_llama_model_quantize(
    sources: Any, recipe: str, shape: str, overrides: dict[str, str]
) -> None:
    params = QuantizationParams(
        RECIPES[recipe], importance_of(SHAPES[shape]), parse_type_overrides(overrides)
    )
    assert_equal(sources(shape, TensorType.BF16), params, SHAPES[shape].hparams)


def error_of(recipe: str, matrix: ImportanceMatrix | None = None, **overrides: str) -> UsageError:
    shape = SHAPES["two layers"]
    tensors = [
        LazyTensor(name, size, "BF16", lambda a, b: None) for name, size in shape.tensor_shapes().items()
    ]
    with pytest.raises(UsageError) as raised:
        choose_tensor_types(
            QuantizationParams(RECIPES[recipe], matrix, parse_type_overrides(overrides)),
            shape.hparams,
            tensors,
        )
    assert raised.value.hint
    return raised.value


def test_an_override_that_is_found_nowhere_is_refused() -> None:
    assert "'ffn_dwon' matches no matrix" in error_of("Q4_K_M", ffn_dwon="q6_k").message
    assert "'attn_norm' matches no matrix" in error_of("Q4_K_M", attn_norm="q6_k").message


def test_overrides_of_a_type_that_quantizes_nothing_are_refused() -> None:
    assert "no effect with `type=F16`" in error_of("F16", ffn_down="q6_k").message


def test_an_override_with_an_invalid_type_or_pattern_is_refused() -> None:
    with pytest.raises(UsageError, match="no tensor type 'q7_k'") as raised:
        parse_type_overrides({"ffn_down": "q7_k"})
    assert "q6_k" in (raised.value.hint or "")
    with pytest.raises(UsageError, match=r"'blk.\(' is not a regular expression"):
        parse_type_overrides({"blk.(": "q6_k"})


# ---- types that need one -------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in WITHOUT_IMATRIX])
def test_types_that_need_an_importance_matrix_are_refused_without_one(
    sources: Any, tmp_path: Path, recipe: str
) -> None:
    error = error_of(recipe)
    assert f"{recipe} makes blk.0.attn_q.weight" in error.message
    assert "pigguf imatrix" in (error.hint or "")
    parameters = llama_cpp.llama_model_quantize_default_params()  # as upstream does
    parameters.ftype = upstream_file_type(recipe)
    source = sources("two layers", TensorType.BF16)
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(tmp_path / "x").encode(), parameters) != 0


def test_an_override_may_need_one_too_even_of_the_embedding() -> None:
    assert "makes blk.0.ffn_up.weight IQ2_S" in error_of("Q4_K_M", ffn_up="iq2_s").message
    assert "makes token_embd.weight IQ2_XS" in error_of("Q4_K_M", token_embd="iq2_xs").message


def test_a_matrix_without_a_tensor_that_needs_it_is_refused() -> None:
    matrix = importance_of(SHAPES["two layers"], leave_out="blk.1.ffn_up.weight")
    error = error_of("IQ2_XXS", matrix)
    assert "of-a-shape.gguf has no entry for blk.1.ffn_up.weight, which would be IQ2_XXS" in error.message


def test_a_matrix_without_a_tensor_that_does_not_need_it_is_used_for_the_others(sources: Any) -> None:
    shape = SHAPES["two layers"]
    matrix = importance_of(shape, leave_out="blk.1.ffn_up.weight")
    assert_equal(
        sources("two layers", TensorType.BF16), QuantizationParams(RECIPES["Q4_K_M"], matrix), shape.hparams
    )


def test_a_matrix_of_another_model_is_refused() -> None:
    error = error_of("Q4_K_M", importance_of(Shape(layers=3)))
    assert "matrix of another model: it has blk.2.attn_q.weight" in error.message
    error = error_of("Q4_K_M", importance_of(Shape(feed_forward=768)))
    assert "of-a-shape.gguf has 768 values for blk.0.ffn_down.weight, which has 512 columns" in error.message
