"""`pigguf imatrix`, and --imatrix and --tensor-type of convert and quantize, as programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command_line import CommandResult
from support.tiny_checkpoints import make_checkpoint

import pigguf
from pigguf.cli import exit_codes
from pigguf.gguf_io import read_header


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "piglet"
    return make_checkpoint(path, hidden_size=256, intermediate_size=256)


@pytest.fixture(scope="module")
def gguf(checkpoint: Path) -> Path:
    pigguf.convert(checkpoint, checkpoint.parent / "model.gguf", type="F16")
    return checkpoint.parent / "model.gguf"


@pytest.fixture(scope="module")
def text(checkpoint: Path, novel: str) -> Path:
    path = checkpoint.parent / "text.txt"
    path.write_text(novel[:1500], encoding="utf-8")
    return path


def types(path: Path) -> dict[str, str]:
    return {name: tensor.type.name for name, tensor in read_header(path).tensors.items()}


def test_from_text_to_two_bits(
    run: Callable[..., CommandResult], checkpoint: Path, gguf: Path, text: Path, tmp_path: Path
) -> None:
    matrix, out = tmp_path / "imatrix.gguf", tmp_path / "out.gguf"
    result = run("imatrix", gguf, "--text", text, "--window", "32", "--max-windows", "3", "-o", matrix)
    assert (result.returncode, result.stderr) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert rows["file"] == str(matrix)
    assert rows["tensors"] == "14"
    assert rows["text"].startswith("3 windows of 32 tokens")
    result = run("convert", checkpoint, "-o", out, "--type", "IQ2_XXS", "--imatrix", matrix)
    assert result.returncode == 0
    assert f"imatrix    {matrix}: 14 tensors\n" in result.stdout
    assert types(out)["blk.1.ffn_up.weight"] == "IQ2_XXS"


def test_json_has_it_all(run: Callable[..., CommandResult], gguf: Path, text: Path, tmp_path: Path) -> None:
    matrix = tmp_path / "imatrix.gguf"
    result = run("imatrix", gguf, "--text", text, "--text", text, "--window", "64", "-o", matrix, "--json")
    data = json.loads(result.stdout)
    assert data.pop("seconds") >= 0
    assert data.pop("windows") % 2 == 0  # each text has as many
    assert data == {"path": str(matrix), "tensors": 14, "unseen": [], "window": 64}
    assert read_header(matrix).metadata["imatrix.datasets"].value == (str(text), str(text))


def test_without_a_matrix_the_hint_is_how_to_make_one(
    run: Callable[..., CommandResult], gguf: Path, tmp_path: Path
) -> None:
    result = run("quantize", gguf, tmp_path / "out.gguf", "--type", "IQ2_XXS")
    assert result.returncode == exit_codes.USAGE.code
    assert "IQ2_XXS makes blk.0.attn_q.weight IQ2_XXS, which needs an importance matrix" in result.stderr
    assert "hint: compute one with `pigguf imatrix MODEL --text FILE`" in result.stderr
    assert not (tmp_path / "out.gguf").exists()


def test_a_file_that_is_not_an_imatrix_is_refused_by_name(
    run: Callable[..., CommandResult], gguf: Path, tmp_path: Path
) -> None:
    result = run("quantize", gguf, tmp_path / "out.gguf", "--type", "Q4_K_M", "--imatrix", gguf)
    assert result.returncode == exit_codes.GGUF.code
    assert f"{gguf} is not an importance matrix: it lacks imatrix.datasets" in result.stderr
    assert "hint: " in result.stderr


def test_types_of_single_tensors(run: Callable[..., CommandResult], gguf: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    arguments = ("--tensor-type", "ffn_down=q6_k", "--tensor-type", r"blk\.0\.attn=q8_0")
    assert run("quantize", gguf, out, "--type", "q4_k_s", *arguments).returncode == 0
    made = types(out)
    assert made["blk.0.ffn_down.weight"] == made["blk.1.ffn_down.weight"] == "Q6_K"
    assert (made["blk.0.attn_q.weight"], made["blk.1.attn_q.weight"]) == ("Q8_0", "Q4_K")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("ffn_dwon=q6_k",), "'ffn_dwon' matches no matrix of the model"),
        (("ffn_down=q7_k",), "there is no tensor type 'q7_k'"),
        (("ffn_down",), "'ffn_down' is not PATTERN=TYPE"),
        (("(=q6_k",), "'(' is not a regular expression"),
        (("ffn_down=q6_k", "ffn_down=q8_0"), "'ffn_down' is given twice"),
    ],
)
def test_invalid_types_of_single_tensors_are_refused(
    run: Callable[..., CommandResult], gguf: Path, tmp_path: Path, given: tuple[str, ...], message: str
) -> None:
    arguments = [part for pattern in given for part in ("--tensor-type", pattern)]
    result = run("quantize", gguf, tmp_path / "out.gguf", "--type", "Q4_K_M", *arguments)
    assert result.returncode == exit_codes.USAGE.code
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out.gguf").exists()
