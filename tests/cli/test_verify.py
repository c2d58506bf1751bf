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


def test_the_same_is_said_part_by_part_with_a_table(
    checkpoint: Path, gguf: Path, run: Callable[..., CommandResult]
) -> None:
    done = run(gguf, "--against", checkpoint)
    assert (done.returncode, done.stderr) == (0, "")
    said = dict(line.split(maxsplit=1) for line in done.stdout.split("\n\n")[0].splitlines())
    assert said["file"] == f"{gguf}, weights of Q8_0"
    assert all(said[part].startswith("same: ") for part in ("structure", "tokenizer", "weights"))
    assert said["verdict"] == "same except for quantization"
    assert "to 256 tokens of a window of 256" in said["predictions"]
    header, *rows = done.stdout.split("\n\n")[1].splitlines()
    assert header.split()[:3] == ["depth", "tokens", "mean"]
    assert [row.split()[0] for row in rows] == ["16", "32", "64", "128", "256"]


def test_another_model_exits_with_what_differs_and_where(
    checkpoint: Path, run: Callable[..., CommandResult], tmp_path: Path
) -> None:
    right, wrong = tmp_path / "right.gguf", tmp_path / "wrong.gguf"
    pigguf.convert(checkpoint, right, type="F32")
    pigguf.repair(right, wrong, set={"llama.rope.scaling.factor": "1.0", "general.name": "Wilbur"})
    done = run(wrong, "--against", checkpoint, "--depths", "32, 128")
    assert done.returncode == exit_codes.FOUND.code == 15
    assert "different from depth 32," in done.stdout
    assert "1 in the file, 4 by the checkpoint" in done.stdout
    assert "'Wilbur' in the file, 'piglet' by the checkpoint" in done.stdout
    assert done.stdout.count("above the limit") == 2
    assert done.stderr == f"hint: `pigguf repair {wrong}` shows how to fix its rope metadata\n"


def test_json_has_it_all(checkpoint: Path, gguf: Path, run: Callable[..., CommandResult], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It is a truth universally acknowledged, that a single man must be in want. " * 9)
    done = run(gguf, "--against", checkpoint, "--text", text, "--tokens", "128", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found["verdict"] == found["predictions"]["verdict"] == "same except for quantization"
    assert (
        found["structure"]["verdict"]
        == found["tokenizer"]["verdict"]
        == found["weights"]["verdict"]
        == "same"
    )
    assert found["predictions"]["text"] == str(text)
    assert found["predictions"]["breaks_at"] is None
    deepest = found["predictions"]["depths"][-1]
    assert (deepest["depth"], deepest["holds"]) == (128, True)
    assert 0 < deepest["mean_kl"] < deepest["limit"]
    assert deepest["log_p"] == pytest.approx(deepest["source_log_p"], abs=0.2)


def test_what_cannot_be_computed_has_an_exit_code_of_its_own(
    run: Callable[..., CommandResult], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "piglet", "gptj")
    edit_config(checkpoint, rope_scaling={"type": "linear", "factor": 4.0})
    pigguf.convert(checkpoint, tmp_path / "model.gguf", type="F32")
    done = run(tmp_path / "model.gguf", "--against", checkpoint)
    assert done.returncode == exit_codes.MODEL.code == 3
    assert "not compared: transformers' GPTJForCausalLM scales no positions" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--depths", "512,many"], 2, "'512,many' is not a list of tokens"),
        (["--depths", "512"], 10, "the depth 512 is beyond the checkpoint's context of 256 tokens"),
        (["--text", "none.txt"], 6, "none.txt"),
    ],
)
def test_bad_input_is_an_error_with_a_hint(
    arguments: list[str], code: int, said: str, checkpoint: Path, gguf: Path, run: Callable[..., CommandResult]
) -> None:
    done = run(gguf, "--against", checkpoint, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
