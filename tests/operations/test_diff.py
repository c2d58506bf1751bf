"""Diff: differences of two GGUF files, against numpy's own arithmetic on known values."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support.tiny_checkpoints import make_checkpoint

import pigguf
from pigguf.cli import exit_codes
from pigguf.cli.diff import command
from pigguf.errors import GGUFError
from pigguf.gguf_io import PlannedTensor, TensorType, serialize_header, write_gguf
from pigguf.gguf_io.metadata import TypedValue, array, f32, string, u32
from pigguf.quantization import decode, encode

KEYS: Mapping[str, TypedValue] = {
    "general.architecture": string("pig"),
    "pig.context_length": u32(64),
    "pig.scale": f32(float("nan")),
    "pig.words": array("str", ("a", "b", "c")),
}
VALUES = np.random.default_rng(0).standard_normal((48, 512)).astype(np.float32)


def write(
    path: Path,
    values: Mapping[str, np.ndarray],
    keys: Mapping[str, TypedValue] = KEYS,
    kind: TensorType = TensorType.F32,
) -> Path:
    write_gguf(path, keys, [planned(name, array_, kind) for name, array_ in values.items()])
    return path


def planned(name: str, values: np.ndarray, kind: TensorType) -> PlannedTensor:
    def rows(start: int, stop: int) -> np.ndarray:
        if kind == TensorType.F32:  # encode refuses what is not finite
            return values[start:stop]
        if kind == TensorType.I32:
            return values[start:stop].astype(np.int32)
        return encode(values[start:stop], kind)

    return PlannedTensor(name, values.shape, kind, ((0, len(values)),), rows)


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return write(tmp_path / "a.gguf", {"x": VALUES, "y": VALUES[0]})


def test_the_same_content_in_another_order_is_the_same(one: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "b.gguf", {"y": VALUES[0], "x": VALUES}, dict(reversed(KEYS.items())))
    assert other.read_bytes() != one.read_bytes()
    found = pigguf.diff(one, other)
    assert found.same
    assert (found.same_keys, found.same_tensors, found.metadata, found.tensors) == (4, 2, (), ())
    differing = CliRunner().invoke(command, [str(one), str(other)])
    assert differing.exit_code == 0
    assert "all 2 are equal" in differing.stdout


def test_keys_added_removed_and_changed_are_shown_with_both_values(one: Path, tmp_path: Path) -> None:
    keys = {
        "general.architecture": string("pig"),
        "pig.context_length": TypedValue("u64", 64),
        "pig.scale": f32(0.5),
        "pig.words": array("str", ("a", "b", "d", "e")),
        "pig.new": u32(1),
    }
    found = pigguf.diff(one, write(tmp_path / "b.gguf", {"x": VALUES, "y": VALUES[0]}, keys))
    differing = {difference.key: difference for difference in found.metadata}
    assert list(differing) == ["pig.context_length", "pig.scale", "pig.words", "pig.new"]
    assert (differing["pig.new"].a, differing["pig.new"].b) == (None, u32(1))
    assert (differing["pig.context_length"].a, differing["pig.context_length"].b) == (
        u32(64),
        TypedValue("u64", 64),
    )
    assert differing["pig.words"].first_difference == 2
    assert (found.same_keys, found.same_tensors, found.same) == (1, 2, False)


@pytest.mark.parametrize(
    ("a", "b", "first"),
    [((1, 2, 3), (1, 2), 2), ((), (5,), 0), ((1, 2), (3, 2), 0), ((1, 2), (1, 3), 1)],
)
def test_an_arrays_first_difference_is_found(
    a: tuple[int, ...], b: tuple[int, ...], first: int, tmp_path: Path
) -> None:
    paths = []
    for name, values in (("a", a), ("b", b)):
        path = tmp_path / name
        path.write_bytes(
            serialize_header({"general.architecture": string("pig"), "pig.n": array("i32", values)}, ())
        )
        paths.append(path)
    (found,) = pigguf.diff(*paths).metadata
    assert found.first_difference == first
    differing = json.loads(CliRunner().invoke(command, [*map(str, paths), "--json"]).stdout)["metadata"][0]
    assert (differing["first_difference"], differing["a"]["length"], differing["b"]["length"]) == (
        first,
        len(a),
        len(b),
    )
    assert CliRunner().invoke(command, list(map(str, paths))).exit_code == exit_codes.FOUND.code


def test_bytes_rows_and_values_are_counted(one: Path, tmp_path: Path) -> None:
    changed = VALUES.copy()
    changed[7, 3] += 0.25
    changed[7, 511] -= 2.0
    changed[40] *= 1.01
    found = pigguf.diff(one, write(tmp_path / "b.gguf", {"x": changed, "y": VALUES[0]}))
    (differing,) = found.tensors
    bytes_ = int((VALUES.view(np.uint8) != changed.view(np.uint8)).sum())
    assert (differing.name, differing.differing_bytes, differing.differing_rows) == ("x", bytes_, 2)
    difference = VALUES.astype(np.float64) - changed
    assert differing.max_abs == np.abs(difference).max()
    expected = np.sqrt((difference**2).sum() / (VALUES.astype(np.float64) ** 2).sum())
    assert differing.rms_relative == pytest.approx(expected, rel=1e-12)
    assert found.same_tensors == 1


@pytest.mark.parametrize("kind", [TensorType.Q8_0, TensorType.Q4_K, TensorType.Q6_K, TensorType.BF16])
def test_another_type_is_compared_by_its_decoded_values(kind: TensorType, one: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "b.gguf", {"x": VALUES, "y": VALUES[0]}, kind=kind)
    differing = pigguf.diff(one, other).tensors[0]
    decoded = decode(encode(VALUES, kind), kind, 512).astype(np.float64)
    assert differing.differing_bytes is None
    assert differing.max_abs == np.abs(VALUES - decoded).max()
    expected = np.sqrt(((VALUES - decoded) ** 2).sum() / (VALUES.astype(np.float64) ** 2).sum())
    assert differing.rms_relative == pytest.approx(expected, rel=1e-12)
    assert 0 < differing.rms_relative < 0.1


def test_one_type_whose_rows_are_blocks(tmp_path: Path) -> None:
    changed = VALUES.copy()
    changed[[2, 3, 30]] *= -1
    paths = [
        write(tmp_path / name, {"x": values}, kind=TensorType.Q4_K)
        for name, values in (("a", VALUES), ("b", changed))
    ]
    (differing,) = pigguf.diff(*paths).tensors
    assert differing.differing_rows == 3
    assert differing.differing_bytes in range(1, 3 * 2 * 144 + 1)


def test_slabs_do_not_count_a_row_twice(one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare slabs that end inside a row whose halves both differ."""
    other = write(tmp_path / "b.gguf", {"x": -VALUES, "y": VALUES[0]})
    at_once = pigguf.diff(one, other).tensors
    monkeypatch.setattr("pigguf.operations.diff._SLAB_ELEMENTS", 768)
    in_slabs = pigguf.diff(one, other).tensors
    assert in_slabs[0].differing_rows == at_once[0].differing_rows == 48
    assert in_slabs[0].differing_bytes == at_once[0].differing_bytes
    assert in_slabs[0].max_abs == at_once[0].max_abs
    assert in_slabs[0].rms_relative == pytest.approx(at_once[0].rms_relative, rel=1e-12)


def test_nan_is_reported_unless_it_is_equal(tmp_path: Path) -> None:
    values = VALUES[:2].copy()
    values[0, :3] = [np.nan, np.inf, -np.inf]
    other, worse = values.copy(), values.copy()
    other[1, 0] += 1.0
    worse[1, 0] = np.nan
    a = write(tmp_path / "a", {"x": values})
    assert pigguf.diff(a, write(tmp_path / "same", {"x": values})).same
    (differing,) = pigguf.diff(a, write(tmp_path / "b", {"x": other})).tensors
    assert differing.max_abs == pytest.approx(1.0)
    (differing,) = pigguf.diff(a, write(tmp_path / "c", {"x": worse})).tensors
    assert np.isnan(differing.max_abs)
    data = json.loads(CliRunner().invoke(command, [str(a), str(tmp_path / "c"), "--json"]).stdout)
    assert data["tensors"][0]["max_abs"] == "nan"


def test_whole_numbers_and_zeros(tmp_path: Path) -> None:
    zeros, numbers = np.zeros((4, 32)), np.arange(128).reshape(4, 32)
    a = write(tmp_path / "a", {"x": zeros}, kind=TensorType.I32)
    (differing,) = pigguf.diff(a, write(tmp_path / "b", {"x": numbers}, kind=TensorType.I32)).tensors
    assert (
        differing.differing_bytes,
        differing.differing_rows,
        differing.max_abs,
        differing.rms_relative,
    ) == (127, 4, 127.0, np.inf)


def test_tensors_of_one_file_alone_and_of_other_shapes(one: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "b.gguf", {"x": VALUES.reshape(96, 256), "z": VALUES[0]})
    differing = {difference.name: difference for difference in pigguf.diff(one, other).tensors}
    assert list(differing) == ["x", "y", "z"]
    assert (differing["x"].a.shape, differing["x"].b.shape) == ((48, 512), (96, 256))
    assert (differing["y"].b, differing["z"].a, differing["x"].max_abs) == (None, None, None)
    shown = CliRunner().invoke(command, [str(one), str(other)])
    assert shown.exit_code == exit_codes.FOUND.code
    assert "F32 [48, 512]" in shown.stdout
    assert "F32 [96, 256]" in shown.stdout


def test_headers_alone(one: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "b.gguf", {"x": -VALUES, "y": VALUES[0]})
    shown = CliRunner().invoke(command, [str(one), str(other), "--no-data"])
    assert shown.exit_code == 0
    assert "only by shape and type" in shown.stdout
    assert not pigguf.diff(one, other).same
    quantized = write(tmp_path / "c.gguf", {"x": VALUES, "y": VALUES[0]}, kind=TensorType.Q8_0)
    assert [d.max_abs for d in pigguf.diff(one, quantized, data=False).tensors] == [None, None]


def test_a_models_quantization_and_its_parts(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "piglet")
    pigguf.convert(checkpoint, tmp_path / "f32.gguf", type="F32")
    pigguf.convert(checkpoint, tmp_path / "q8.gguf", type="Q8_0")
    pigguf.convert(checkpoint, tmp_path / "parts.gguf", type="F32", shard_size=100_000)
    part = next(tmp_path.glob("parts-00002-*"))
    assert pigguf.diff(tmp_path / "f32.gguf", part).same
    found = pigguf.diff(tmp_path / "f32.gguf", tmp_path / "q8.gguf")
    assert [difference.key for difference in found.metadata] == ["general.file_type"]
    assert all(difference.rms_relative < 0.01 for difference in found.tensors)
    assert found.same_tensors == 5  # the norms


def test_a_missing_file_is_an_error(one: Path, tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"missing\.gguf") as raised:
        pigguf.diff(one, tmp_path / "missing.gguf")
    assert raised.value.hint


def test_memory_stays_flat(tmp_path: Path) -> None:
    """A tensor of one row of 100 MB, in files with holes, whose last value differs."""
    paths = []
    for name in ("a", "b"):
        tensor = PlannedTensor("x", (25_000_000,), TensorType.F32, (), lambda start, stop: VALUES)
        header = serialize_header(KEYS, [tensor])
        with open(tmp_path / name, "wb") as file:
            file.write(header)
            file.truncate(len(header) + tensor.nbytes)
            if name == "b":
                file.seek(len(header) + 99_999_996)
                file.write(np.float32(1.0).tobytes())
        paths.append(str(tmp_path / name))
    code = (
        "import resource, sys, pigguf, pigguf.operations.diff\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "(found,) = pigguf.diff(*sys.argv[1:]).tensors\n"
        "print(found.differing_bytes, found.differing_rows, found.max_abs, found.rms_relative,\n"
        "      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    *numbers, grown = done.stdout.split()
    assert numbers == ["2", "1", "1.0", "inf"]
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(grown) * unit < 50e6
