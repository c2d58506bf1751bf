"""Importance matrices as files of both formats, invalid ones, and the importances of each expert."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest

from pigguf.common.lazy_tensor import Array, LazyTensor
from pigguf.errors import GGUFError, InvalidTensor
from pigguf.gguf_io import PlannedTensor, TensorType, write_gguf
from pigguf.gguf_io.metadata import TypedValue, array, string, u32
from pigguf.operations.convert import plan_tensors
from pigguf.quantization import (
    ImatrixSums,
    ImportanceMatrix,
    TensorTypeChoice,
    decode,
    encode,
    read_imatrix,
    serialize_imatrix,
)

DENSE, EXPERTS = "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"
SQUARES = np.random.default_rng(1).exponential(size=(3, 8)).astype(np.float32)
SUMS = {
    EXPERTS: ImatrixSums(SQUARES.astype(np.float64), np.array([4, 0, 96])),
    DENSE: ImatrixSums(SQUARES[:1].astype(np.float64), np.array([100])),
}


def write_imatrix(path: Path) -> Path:
    path.write_bytes(serialize_imatrix(SUMS, ["novel.txt", "code.txt"], 5, 512))
    return path


def test_the_file_is_what_llama_imatrix_writes(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(write_imatrix(tmp_path / "matrix.gguf"))
    fields = {name: field.contents() for name, field in reader.fields.items() if name[0] in "gi"}
    assert fields == {
        "general.type": "imatrix",
        "imatrix.datasets": ["novel.txt", "code.txt"],
        "imatrix.chunk_count": 5,
        "imatrix.chunk_size": 512,
    }
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == {
        f"{DENSE}.in_sum2": [8],
        f"{DENSE}.counts": [1],
        f"{EXPERTS}.in_sum2": [8, 3],
        f"{EXPERTS}.counts": [1, 3],
    }
    assert list(tensors) == sorted(
        tensors, key=lambda name: (name.rpartition(".")[0], name.endswith("counts"))
    )
    np.testing.assert_array_equal(tensors[f"{EXPERTS}.in_sum2"].data, SQUARES)
    assert tensors[f"{EXPERTS}.counts"].data.ravel().tolist() == [4, 0, 96]


def test_weights_are_sums_divided_by_counts_and_one_for_an_unused_expert(tmp_path: Path) -> None:
    matrix = read_imatrix(write_imatrix(tmp_path / "matrix.gguf"))
    assert (matrix.datasets, matrix.chunks) == (("novel.txt", "code.txt"), 5)
    np.testing.assert_array_equal(matrix.weights[DENSE], SQUARES[0] / np.float32(100))
    expected = np.stack([SQUARES[0] / np.float32(4), np.ones(8), SQUARES[2] / np.float32(96)]).astype(
        np.float32
    )
    tensor = LazyTensor(EXPERTS, (3, 2, 8), "F32", lambda start, stop: SQUARES)
    of_tensor = matrix.for_tensor(tensor)
    assert of_tensor is not None
    assert of_tensor.dtype == np.float32
    np.testing.assert_array_equal(of_tensor, expected)


def test_its_keys_in_a_quantized_file(tmp_path: Path) -> None:
    path = write_imatrix(tmp_path / "matrix.gguf")
    assert {key: typed.value for key, typed in read_imatrix(path).metadata().items()} == {
        "quantize.imatrix.file": str(path),
        "quantize.imatrix.dataset": "novel.txt",
        "quantize.imatrix.entries_count": 2,
        "quantize.imatrix.chunks_count": 5,
    }
    assert list(ImportanceMatrix(path, {}, (), 0).metadata()) == [
        "quantize.imatrix.file",
        "quantize.imatrix.entries_count",
    ]


# ---- the .dat format -----------------------------------------------------------------------------


def legacy(entries: Mapping[str, tuple[int, Array]], tail: tuple[int, str] | None) -> bytes:
    """As imatrix.cpp's save_imatrix_legacy writes it: means of squares, times the calls."""
    data = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values))
        data += (values * np.float32(calls)).astype("<f4").tobytes()
    if tail is not None:
        data += struct.pack("<ii", tail[0], len(tail[1])) + tail[1].encode()
    return data


LEGACY = {DENSE: (4, SQUARES[0]), EXPERTS: (8, SQUARES.ravel())}


@pytest.mark.parametrize("tail", [None, (5, "novel.txt"), (5, "")])
def test_the_dat_format_holds_the_same(tmp_path: Path, tail: tuple[int, str] | None) -> None:
    path = tmp_path / "matrix.dat"
    path.write_bytes(legacy(LEGACY, tail))
    matrix = read_imatrix(path)
    assert matrix.chunks == (5 if tail else 0)
    assert matrix.datasets == (("novel.txt",) if tail and tail[1] else ())
    assert list(matrix.weights) == [DENSE, EXPERTS]
    np.testing.assert_array_equal(matrix.weights[DENSE], SQUARES[0])  # 4 and 8 are exact
    np.testing.assert_array_equal(matrix.weights[EXPERTS], SQUARES.ravel())


def test_the_dat_format_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "matrix.dat"
    whole = legacy(LEGACY, (5, "novel.txt"))
    without_tail = len(legacy(LEGACY, None))
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        if length == without_tail:  # the oldest files end here
            assert read_imatrix(path).chunks == 0
            continue
        with pytest.raises(GGUFError, match=r"matrix\.dat is not an importance matrix, or damaged") as raised:
            read_imatrix(path)
        assert raised.value.hint


@pytest.mark.parametrize("at", range(0, 60, 4))
@pytest.mark.parametrize("number", [-1, 0, 2**31 - 1, -(2**31)])
def test_absurd_numbers_in_the_dat_format_are_refused_or_read_at_once(
    tmp_path: Path, at: int, number: int
) -> None:
    path = tmp_path / "matrix.dat"
    data = bytearray(legacy(LEGACY, (5, "novel.txt")))
    data[at : at + 4] = struct.pack("<i", number)
    path.write_bytes(data)
    with suppress(GGUFError):  # and nothing else, such as a MemoryError
        assert all(np.isfinite(values).all() for values in read_imatrix(path).weights.values())


# ---- invalid files --------------------------------------------------------------------------------

KEYS = {
    "general.type": string("imatrix"),
    "imatrix.datasets": array("str", ("novel.txt",)),
    "imatrix.chunk_count": u32(1),
    "imatrix.chunk_size": u32(512),
}
WHOLE = {f"{DENSE}.in_sum2": SQUARES[0], f"{DENSE}.counts": np.array([7], np.float32)}


def changed(values: Array, index: int, value: float) -> Array:
    values = values.copy()
    values[index] = value
    return values


@pytest.mark.parametrize(
    ("keys", "tensors", "message"),
    [
        (
            KEYS,
            {"blk.0.attn_q.weight": SQUARES},
            r"not an importance matrix: it lacks any tensor NAME\.in_sum2",
        ),
        (
            {key: typed for key, typed in KEYS.items() if key != "imatrix.chunk_size"},
            WHOLE,
            r"not an importance matrix: it lacks imatrix\.chunk_size",
        ),
        ({**KEYS, "imatrix.chunk_count": string("x")}, WHOLE, r"imatrix\.chunk_count is str, not int"),
        (KEYS, {f"{DENSE}.in_sum2": SQUARES[0]}, rf"{DENSE}\.counts is missing"),
        (
            KEYS,
            {**WHOLE, f"{DENSE}.counts": np.ones(3, np.float32)},
            "8 sums and 3 counts, which do not",
        ),
        (KEYS, {**WHOLE, f"{DENSE}.counts": np.array([np.nan], np.float32)}, "8 sums and 1 counts"),
        (KEYS, {**WHOLE, f"{DENSE}.in_sum2": SQUARES[0].astype(np.float16)}, "in_sum2 is F16, not F32"),
        (
            KEYS,
            {**WHOLE, f"{DENSE}.in_sum2": changed(SQUARES[0], 3, np.inf)},
            f"value 3 of {DENSE} is inf, not a mean square",
        ),
        (
            KEYS,
            {**WHOLE, f"{DENSE}.in_sum2": changed(SQUARES[0], 5, -7)},
            f"value 5 of {DENSE} is -1, not a mean square",
        ),
        (
            KEYS,
            {**WHOLE, f"{DENSE}.in_sum2": changed(SQUARES[0], 2, 7e30)},
            rf"value 2 of {DENSE} is 1e\+30, not a mean square",
        ),
        (KEYS, {**WHOLE, f"{DENSE}.in_sum2": 0 * SQUARES[0]}, f"every value of {DENSE} is 0"),
    ],
)
def test_other_files_are_refused_with_file_and_tensor(
    tmp_path: Path, keys: dict[str, TypedValue], tensors: dict[str, Array], message: str
) -> None:
    path = tmp_path / "matrix.gguf"
    write_gguf(path, keys, [planned(name, values) for name, values in tensors.items()])
    with pytest.raises(GGUFError, match=message) as raised:
        read_imatrix(path)
    assert str(path) in raised.value.message
    assert raised.value.hint


def planned(name: str, values: Array) -> PlannedTensor:
    kind = TensorType[f"F{8 * values.itemsize}"]
    return PlannedTensor(name, values.shape, kind, [(0, len(values))], lambda start, stop: values)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"gone\.gguf: No such file") as raised:
        read_imatrix(tmp_path / "gone.gguf")
    assert "importance matrix" in (raised.value.hint or "")


# ---- quantizing with it -------------------------------------------------------------------------

WEIGHTS = np.random.default_rng(2).normal(size=(24, 256)).astype(np.float32)  # 4 experts of 6 rows


@pytest.mark.parametrize("kind", [TensorType.IQ2_XXS, TensorType.Q4_K, TensorType.Q8_0], ids=lambda k: k.name)
def test_each_expert_uses_its_own_importances_wherever_slabs_begin(kind: TensorType) -> None:
    importance = np.random.default_rng(3).exponential(size=(4, 256)).astype(np.float32)
    importance[1, ::3] = 0
    matrix = ImportanceMatrix(Path("matrix.gguf"), {EXPERTS: importance.ravel()}, (), 0)
    tensor = LazyTensor(EXPERTS, (4, 6, 256), "F32", lambda start, stop: WEIGHTS[start:stop])
    (planned_tensor,) = plan_tensors([tensor], {EXPERTS: TensorTypeChoice(kind, kind)}, matrix)
    expected = np.concatenate([encode(WEIGHTS[6 * e : 6 * e + 6], kind, importance[e]) for e in range(4)])
    for size in (1, 5, 6, 7, 24):
        slabs = [planned_tensor.encode(start, min(start + size, 24)) for start in range(0, 24, size)]
        np.testing.assert_array_equal(np.concatenate(slabs), expected)


def test_important_columns_are_quantized_more_exactly() -> None:
    importance = np.where(np.arange(256) % 8 == 0, 1000, 1).astype(np.float32)
    errors = [
        (decode(encode(WEIGHTS, TensorType.Q3_K, given), TensorType.Q3_K, 256) - WEIGHTS)[
            :, importance > 1
        ].std()
        for given in (None, importance)
    ]
    assert errors[1] < 0.8 * errors[0]


def test_an_infinite_weight_of_an_expert_is_reported_with_its_row() -> None:
    values = WEIGHTS.copy()
    values[13, 7] = np.inf
    matrix = ImportanceMatrix(Path("matrix.gguf"), {EXPERTS: np.ones(4 * 256, np.float32)}, (), 0)
    tensor = LazyTensor(EXPERTS, (4, 6, 256), "F32", lambda start, stop: values[start:stop])
    (planned_tensor,) = plan_tensors(
        [tensor], {EXPERTS: TensorTypeChoice(TensorType.Q4_K, TensorType.Q4_K)}, matrix
    )
    with pytest.raises(InvalidTensor, match=rf"{EXPERTS}: element \[13, 7\] is inf"):
        planned_tensor.encode(2, 20)


EXTREMES = """
import sys, numpy as np
from pigguf.gguf_io import TensorType
from pigguf.quantization.ggml_kernels import InvalidTensorValue, encode
kind, rng = TensorType[sys.argv[1]], np.random.default_rng(0)
importances = [np.zeros(256), np.full(256, 1e12), rng.choice([0, 1e-38, 1e12], size=256), np.full(256, 1e-38)]
refused = 0
for scale in (1e-38, 1e-30, 1e-10, 1, 1e3, 1e6, 1e7, 5e7, 1e9, 1e20, 3e38):
    normal = rng.normal(size=(4, 256)).clip(-1, 1) * scale
    for values in (normal, np.full((1, 256), scale), rng.choice([-scale, 0, scale], size=(4, 256))):
        for importance in importances:
            try:
                encode(values.astype("f4"), kind, importance.astype("f4"))
            except InvalidTensorValue as error:
                assert scale >= 1e6 and f"which {kind.name} cannot represent" in error.message, (scale, error)
                refused += 1
print(refused >= 3 * 3 * 4)
"""


@pytest.mark.parametrize(
    "kind",
    [
        *("IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ3_S"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("IQ2_S", "IQ1_M", "IQ1_S")),
    ],
)
def test_no_values_or_importances_abort_the_process(kind: str) -> None:
    done = subprocess.run([sys.executable, "-c", EXTREMES, kind], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr[-2000:]
