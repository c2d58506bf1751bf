"""The kernels against numpy, ml_dtypes and gguf-py, and what they refuse.

That whole files equal llama_model_quantize's is test_recipes.py's part.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest

from pigguf.common.lazy_tensor import Array
from pigguf.errors import GGUFError, InvalidTensor
from pigguf.gguf_io import TensorType, row_bytes
from pigguf.quantization.ggml_kernels import (
    FLOAT_DTYPES,
    NEED_IMATRIX,
    QUANTIZED_TYPES,
    InvalidTensorValue,
    decode,
    encode,
    first_non_finite,
)

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SOURCES = [np.dtype(np.float32), np.dtype(np.float16), BFLOAT16]
# ggml computes their tables for seconds, once a process
SLOW = {TensorType.IQ2_S, TensorType.IQ1_M}
BLOCKS = [
    pytest.param(kind, marks=pytest.mark.slow) if kind in SLOW else kind
    for kind in sorted(QUANTIZED_TYPES - NEED_IMATRIX)
]
ENCODABLE = [*FLOAT_DTYPES, *BLOCKS]


def name_of(value: object) -> str | None:
    return getattr(value, "name", None)


def weights(shape: tuple[int, ...], dtype: np.dtype = SOURCES[0], seed: int = 5) -> Array:
    """Return normal weights with a few outliers, and a scale that reaches into float16's subnormals."""
    rng = np.random.default_rng(seed)
    values = rng.normal(scale=0.02, size=shape) * rng.choice([1e-4, 1, 1, 1, 50], size=shape)
    return values.astype(dtype)


def bits(values: Array) -> Array:
    return values.view(np.uint8)


# Float types


def test_every_bfloat16_number_becomes_the_nearest_float16() -> None:
    every = np.arange(65536, dtype=np.uint16).view(BFLOAT16)
    with np.errstate(over="ignore"):
        expected = every.astype(np.float32).astype(np.float16)
    fits = np.isfinite(expected)
    assert fits.sum() > 36000
    np.testing.assert_array_equal(encode(every[fits], TensorType.F16)[0], bits(expected[fits]))


def test_float32_of_any_magnitude_becomes_the_nearest_float16() -> None:
    patterns = np.random.default_rng(1).integers(0, 2**32, size=2_000_000, dtype=np.uint32)
    values = patterns.view(np.float32)
    values = values[np.abs(values) < 65520]  # also drops NaN; half of what remains is subnormal or zero
    expected = values.astype(np.float16)
    assert len(np.unique(expected.view(np.uint16))) > 60000
    np.testing.assert_array_equal(encode(values, TensorType.F16)[0], bits(expected))


def test_float32_of_any_magnitude_becomes_the_nearest_bfloat16() -> None:
    patterns = np.random.default_rng(2).integers(0, 2**32, size=2_000_000, dtype=np.uint32)
    values = patterns.view(np.float32)
    values = values[np.abs(values) < 3.38e38]
    np.testing.assert_array_equal(encode(values, TensorType.BF16)[0], bits(values.astype(BFLOAT16)))


@pytest.mark.parametrize("dtype", SOURCES[1:], ids=str)
def test_widening_to_float32_is_exact(dtype: np.dtype) -> None:
    every = np.arange(65536, dtype=np.uint16).view(dtype)
    every = every[np.isfinite(every.astype(np.float32))].reshape(4, -1)
    encoded = encode(every, TensorType.F32)
    assert encoded.shape == (4, every.shape[1] * 4)
    np.testing.assert_array_equal(encoded, bits(every.astype(np.float32)))


@pytest.mark.parametrize("kind", FLOAT_DTYPES, ids=name_of)
def test_values_of_the_type_already_are_not_copied(kind: TensorType) -> None:
    values = weights((6, 10), FLOAT_DTYPES[kind])
    encoded = encode(values, kind)
    assert np.shares_memory(encoded, values)
    np.testing.assert_array_equal(encoded, bits(values))


# Block formats


@pytest.mark.parametrize("kind", ENCODABLE, ids=name_of)
def test_decode_agrees_with_gguf_py(kind: TensorType) -> None:
    raw = encode(weights((24, 512)), kind)
    decoded = decode(raw, kind, 512)
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, gguf.quants.dequantize(raw, kind).reshape(24, 512))


DECODED = [
    *(TensorType.IQ1_S, TensorType.IQ1_M, TensorType.IQ2_XXS, TensorType.IQ2_XS, TensorType.IQ2_S),
    *(TensorType.IQ3_XXS, TensorType.IQ3_S, TensorType.TQ1_0, TensorType.TQ2_0, TensorType.MXFP4),
]


@pytest.mark.parametrize("kind", DECODED, ids=name_of)
def test_decode_of_any_bytes_agrees_with_gguf_py(kind: TensorType) -> None:
    shape = (64, row_bytes(kind, 512))
    raw = np.random.default_rng(3).integers(0, 256, size=shape, dtype=np.uint8)
    with np.errstate(all="ignore"):  # random bytes make infinite scales too
        expected = gguf.quants.dequantize(raw, kind).reshape(64, 512)
    finite = np.isfinite(expected)
    assert finite.mean() > 0.5
    np.testing.assert_allclose(decode(raw, kind, 512)[finite], expected[finite], rtol=1e-6)


@pytest.mark.parametrize("kind", BLOCKS, ids=name_of)
def test_a_block_format_stays_near_the_values(kind: TensorType) -> None:
    values = np.random.default_rng(4).normal(size=(16, 512)).astype(np.float32)
    error = decode(encode(values, kind), kind, 512) - values
    bits_per_weight = row_bytes(kind, 512) * 8 / 512
    assert error.std() < 2 * 2.0 ** -(bits_per_weight - 1.5)


@pytest.mark.parametrize("dtype", SOURCES[1:], ids=str)
@pytest.mark.parametrize("kind", BLOCKS, ids=name_of)
def test_narrow_sources_go_through_float32(kind: TensorType, dtype: np.dtype) -> None:
    values = weights((24, 256), dtype)
    np.testing.assert_array_equal(encode(values, kind), encode(values.astype(np.float32), kind))


@pytest.mark.parametrize("kind", ENCODABLE, ids=name_of)
def test_slabs_on_two_threads_give_the_bytes_of_the_whole(kind: TensorType) -> None:
    values = weights((1500, 256), BFLOAT16)  # more than one block of the kernel's own
    whole = encode(values, kind)
    with ThreadPoolExecutor(2) as pool:
        slabs = pool.map(lambda start: encode(values[start : start + 70], kind), range(0, 1500, 70))
    np.testing.assert_array_equal(np.concatenate(list(slabs)), whole)


def test_rows_wider_than_a_block_and_more_axes_than_two() -> None:
    wide = weights((2, 1 << 19), BFLOAT16)
    np.testing.assert_array_equal(encode(wide, TensorType.F16), bits(wide.astype(np.float16)))
    stacked = weights((3, 4, 64))
    np.testing.assert_array_equal(
        encode(stacked, TensorType.Q8_0), encode(stacked.reshape(12, 64), TensorType.Q8_0)
    )


def test_rows_that_do_not_follow_each_other_in_memory() -> None:
    values = weights((64, 512))[::2, :256]
    np.testing.assert_array_equal(encode(values, TensorType.Q4_K), encode(values.copy(), TensorType.Q4_K))


@pytest.mark.parametrize("kind", [TensorType.F16, TensorType.Q8_0], ids=name_of)
def test_memory_beside_the_result_stays_small(kind: TensorType) -> None:
    values = np.ones((4096, 4096), BFLOAT16)
    encode(values[:1], kind)
    tracemalloc.start()
    try:
        encoded = encode(values, kind)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - encoded.nbytes < 8 << 20


# What is refused


@pytest.mark.parametrize("dtype", SOURCES, ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 7, 262143, 262144, 500_000, 599_999])
def test_first_non_finite_finds_the_first(dtype: np.dtype, value: float, position: int) -> None:
    values = np.ones(600_000, dtype)
    assert first_non_finite(values) is None
    values[position] = value
    values[position + 1 :: 50_000] = np.nan
    assert first_non_finite(values) == position


@pytest.mark.parametrize("kind", ENCODABLE, ids=name_of)
@pytest.mark.parametrize("dtype", SOURCES, ids=str)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_value_that_is_not_finite_is_refused_with_its_place(
    kind: TensorType, dtype: np.dtype, value: float
) -> None:
    values = weights((1200, 256), dtype)
    values[1100, 255] = value
    values[1101, 0] = np.nan
    with pytest.raises(InvalidTensorValue, match=r"element \[1100, 255\] is (nan|-inf)") as refusal:
        encode(values, kind)
    assert refusal.value.index == (1100, 255)


@pytest.mark.parametrize(
    ("kind", "fits", "too_large"),
    [
        (TensorType.F16, 65519.0, 65520.0),
        (TensorType.BF16, 3.38e38, 3.40e38),
        (TensorType.Q8_0, 8.0e6, 9.0e6),  # a block's scale is a float16
        (TensorType.Q4_0, 5.0e5, 6.0e5),
        (TensorType.Q6_K, 2.0e8, 2.0e9),
        (TensorType.Q4_K, 4.0e7, 4.0e8),
        (TensorType.IQ4_XS, 6.0e7, 6.0e8),
    ],
    ids=name_of,
)
def test_a_value_beyond_the_types_range_is_refused(kind: TensorType, fits: float, too_large: float) -> None:
    values = weights((1200, 256))
    values[1100, 70] = fits
    assert np.isfinite(decode(encode(values, kind), kind, 256)).all()
    values[1100, 70] = too_large
    with pytest.raises(InvalidTensorValue, match=f"which {kind.name} cannot represent") as refusal:
        encode(values, kind)
    assert refusal.value.index == (1100, 70)


def test_a_refusal_is_told_in_terms_of_the_tensor() -> None:
    values = weights((4, 256))
    values[2, 9] = np.nan
    with pytest.raises(InvalidTensorValue) as refusal:
        encode(values, TensorType.Q4_K)
    located = refusal.value.in_tensor("model.safetensors: blk.0.attn_q.weight", first_row=400)
    assert type(located) is InvalidTensor
    assert located.message.startswith("model.safetensors: blk.0.attn_q.weight: element [402, 9] is nan")
    assert located.hint


def test_an_element_of_a_vector_is_located_too() -> None:
    with pytest.raises(InvalidTensorValue) as refusal:
        encode(np.array([1, 1, np.inf], np.float32), TensorType.F32)
    assert "norm: element [12] is inf" in refusal.value.in_tensor("norm", first_row=10).message


def test_rows_that_are_not_whole_blocks_are_refused() -> None:
    with pytest.raises(GGUFError, match="whole number of Q4_K blocks"):
        encode(weights((2, 128)), TensorType.Q4_K)
    with pytest.raises(GGUFError, match="whole number of Q8_0 blocks"):
        decode(np.zeros((2, 34), np.uint8), TensorType.Q8_0, 40)


@pytest.mark.parametrize("kind", sorted(NEED_IMATRIX), ids=name_of)
def test_types_that_need_an_importance_are_refused_before_ggml_aborts(kind: TensorType) -> None:
    with pytest.raises(ValueError, match=f"{kind.name} is not encoded without an importance"):
        encode(weights((2, 256)), kind)


@pytest.mark.parametrize(
    "importance", [np.ones(255, np.float32), np.ones(256), np.ones((2, 256), np.float32)]
)
def test_an_importance_of_other_columns_is_refused_before_ggml_reads_past_it(importance: Array) -> None:
    with pytest.raises(ValueError, match="the importance of 256 columns is"):
        encode(weights((2, 256)), TensorType.Q4_K, importance)


def test_types_without_a_kernel_are_refused_before_ggml_aborts() -> None:
    with pytest.raises(ValueError, match="TQ1_0"):
        encode(weights((2, 256)), TensorType.TQ1_0)
    with pytest.raises(InvalidTensor, match="I32"):
        decode(np.zeros((2, 16), np.uint8), TensorType.I32, 4)


# Finding the libraries

ENCODE_ONE_ROW = """
import sys, numpy
from pigguf.errors import BackendUnavailable
from pigguf.gguf_io import TensorType
from pigguf.quantization.ggml_kernels import encode
try:
    print(encode(numpy.ones((1, 32), "float32"), TensorType.Q8_0).shape)
except BackendUnavailable as error:
    print(error.message, "|", error.hint)
print("llama_cpp" in sys.modules)
"""


def run_with_packages(folder: Path | None) -> list[str]:
    """Return what ENCODE_ONE_ROW prints if `folder`'s packages come before the installed ones."""
    environment = os.environ | ({"PYTHONPATH": str(folder)} if folder else {})
    command = [sys.executable, "-W", "error", "-c", ENCODE_ONE_ROW]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_kernels_work_without_importing_llama_cpp() -> None:
    assert run_with_packages(None) == ["(1, 34)", "False"]


def test_an_engine_without_libraries_is_reported(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp" / "__init__.py").touch()
    message, _ = run_with_packages(tmp_path)
    assert "ggml-base" in message
    assert "pigguf doctor" in message


def test_a_broken_library_is_reported(tmp_path: Path) -> None:
    library = tmp_path / "llama_cpp" / "lib"
    library.mkdir(parents=True)
    (tmp_path / "llama_cpp" / "__init__.py").touch()
    for name in ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll"):
        (library / name).write_bytes(b"not a library")
    message, _ = run_with_packages(tmp_path)
    assert message.startswith("cannot load")
    assert "pigguf doctor" in message
