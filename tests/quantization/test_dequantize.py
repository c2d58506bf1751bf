"""Float promises of a GGUF against gguf-py's dequantization, whole and in slabs."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import pytest

from pigguf.errors import InvalidTensor
from pigguf.gguf_io import (
    PlannedTensor,
    TensorData,
    TensorType,
    read_header,
    write_gguf,
)
from pigguf.gguf_io.metadata import string
from pigguf.quantization import encode, float_tensors
from pigguf.quantization.ggml_kernels import FLOAT_DTYPES

SHAPES = {"matrix.weight": (10, 64), "norm.weight": (96,), "experts.weight": (3, 4, 32)}


def rows_of(shape: tuple[int, ...]) -> int:
    """Of all matrices together; a vector's elements are rows."""
    return shape[0] if len(shape) == 1 else math.prod(shape[:-1])


def write(path: Path, kind: TensorType) -> dict[str, np.ndarray]:
    """Write a GGUF of SHAPES in one type, and return each tensor's bytes as uint8 rows."""
    rng = np.random.default_rng(8)
    raw = {
        name: encode(rng.normal(size=shape).astype(np.float32), kind).reshape(*shape[:-1], -1)
        for name, shape in SHAPES.items()
    }
    write_gguf(
        path,
        {"general.architecture": string("llama")},
        [
            PlannedTensor(
                name, SHAPES[name], kind, [(0, rows_of(SHAPES[name]))], lambda a, b, rows=rows: rows
            )
            for name, rows in raw.items()
        ],
    )
    return raw


@pytest.mark.parametrize("kind", [*FLOAT_DTYPES, TensorType.Q4_1, TensorType.Q8_0], ids=lambda k: k.name)
def test_lazy_tensors_read_what_gguf_py_reads(tmp_path: Path, kind: TensorType) -> None:
    raw = write(tmp_path / "model.gguf", kind)
    file = read_header(tmp_path / "model.gguf")
    with TensorData(file) as data:
        tensors = float_tensors(file, data)
        assert [(tensor.name, tensor.shape) for tensor in tensors] == list(SHAPES.items())
        for tensor in tensors:
            assert tensor.dtype == (kind.name if kind in FLOAT_DTYPES else "F32")
            expected = gguf.quants.dequantize(raw[tensor.name], kind)
            whole = tensor.load()
            assert whole.dtype == FLOAT_DTYPES[TensorType[tensor.dtype]]
            np.testing.assert_array_equal(whole.astype(np.float32), expected)
            rows = whole if whole.ndim == 1 else whole.reshape(-1, whole.shape[-1])
            np.testing.assert_array_equal(tensor.read(1, 3), rows[1:3])


def test_whole_numbers_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("table", np.arange(8, dtype=np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_header(path)
    with TensorData(file) as data, pytest.raises(InvalidTensor, match="table is stored as I32"):
        float_tensors(file, data)
