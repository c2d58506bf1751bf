"""`pigguf verify` as a program: what goes where, and the exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from support.command_line import CommandResult
from support.tiny_checkpoints import edit_config, make_checkpoint

import pigguf
from pigguf.cli import exit_codes


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    linear = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    return make_checkpoint(tmp_path_factory.mktemp("models") / "piglet", rope_parameters=linear)


@pytest.fixture(scope="module")
def gguf(checkpoint: Path) -> Path:
    pigguf.convert(checkpoint, checkpoint.parent / "model.gguf", type="Q8_0")
    return checkpoint.parent / "model.gguf"


@pytest.fixture
def run(run: Callable[..., CommandResult]) -> Callable[..., CommandResult]:
    """`pigguf verify` with arguments."""
    return partial(run, "verify")


def test_output_reports_each_part_with_a_table(
    checkpoint: Path, gguf: Path, run: Callable[..., CommandResult]
) -> None:
    result = run(gguf, "--against", checkpoint)
    assert (result.returncode, result.stderr) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in result.stdout.split("\n\n")[0].splitlines())
    assert rows["file"] == f"{gguf}, weights of Q8_0"
    assert all(rows[part].startswith("same: ") for part in ("structure", "tokenizer", "weights"))
    assert rows["verdict"] == "same except for quantization"
    assert "to 256 tokens of a window of 256" in rows["predictions"]
    header, *rows = result.stdout.split("\n\n")[1].splitlines()
    assert header.split()[:3] == ["depth", "tokens", "mean"]
    assert [row.split()[0] for row in rows] == ["16", "32", "64", "128", "256"]


def test_another_model_exits_with_what_differs_and_where(
    checkpoint: Path, run: Callable[..., CommandResult], tmp_path: Path
) -> None:
    right, wrong = tmp_path / "right.gguf", tmp_path / "wrong.gguf"
    pigguf.convert(checkpoint, right, type="F32")
    pigguf.repair(right, wrong, set={"llama.rope.scaling.factor": "1.0", "general.name": "Wilbur"})
    result = run(wrong, "--against", checkpoint, "--depths", "32, 128")
    assert result.returncode == exit_codes.FOUND.code == 15
    assert "different from depth 32," in result.stdout
    assert "1 in the file, 4 by the checkpoint" in result.stdout
    assert "'Wilbur' in the file, 'piglet' by the checkpoint" in result.stdout
    assert result.stdout.count("above the limit") == 2
    assert result.stderr == f"hint: `pigguf repair {wrong}` shows how to fix its rope metadata\n"


def test_json_has_it_all(
    checkpoint: Path, gguf: Path, run: Callable[..., CommandResult], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It is a truth universally acknowledged, that a single man must be in want. " * 9)
    result = run(gguf, "--against", checkpoint, "--text", text, "--tokens", "128", "--json")
    assert result.returncode == 0
    data = json.loads(result.stdout)
    assert data["verdict"] == data["predictions"]["verdict"] == "same except for quantization"
    assert (
        data["structure"]["verdict"] == data["tokenizer"]["verdict"] == data["weights"]["verdict"] == "same"
    )
    assert data["predictions"]["text"] == str(text)
    assert data["predictions"]["breaks_at"] is None
    deepest = data["predictions"]["depths"][-1]
    assert (deepest["depth"], deepest["holds"]) == (128, True)
    assert 0 < deepest["mean_kl"] < deepest["limit"]
    assert deepest["log_p"] == pytest.approx(deepest["source_log_p"], abs=0.2)


def test_a_model_that_cannot_be_computed_has_its_own_exit_code(
    run: Callable[..., CommandResult], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "piglet", "gptj")
    edit_config(checkpoint, rope_scaling={"type": "linear", "factor": 4.0})
    pigguf.convert(checkpoint, tmp_path / "model.gguf", type="F32")
    result = run(tmp_path / "model.gguf", "--against", checkpoint)
    assert result.returncode == exit_codes.MODEL.code == 3
    assert "not compared: transformers' GPTJForCausalLM scales no positions" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--depths", "512,many"], 2, "'512,many' is not a list of tokens"),
        (["--depths", "512"], 10, "the depth 512 is beyond the checkpoint's context of 256 tokens"),
        (["--text", "none.txt"], 6, "none.txt"),
    ],
)
def test_bad_input_is_an_error_with_a_hint(
    arguments: list[str],
    code: int,
    message: str,
    checkpoint: Path,
    gguf: Path,
    run: Callable[..., CommandResult],
) -> None:
    result = run(gguf, "--against", checkpoint, *arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert message in result.stderr
