"""`pigguf repair` as a program: what goes where, and the exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from support.command_line import CommandResult
from support.tiny_checkpoints import make_checkpoint

import pigguf
from pigguf.cli import exit_codes
from pigguf.gguf_io import read_header
from pigguf.gguf_io.metadata import u32


@pytest.fixture(scope="module")
def clamped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model trained at 64 tokens and interpolated to 256, whose context length is still 64."""
    path = tmp_path_factory.mktemp("models")
    linear = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    pigguf.convert(make_checkpoint(path / "piglet", rope_parameters=linear), path / "model.gguf", type="F32")
    pigguf.repair(path / "model.gguf", set={"llama.context_length": "64"})
    return path / "model.gguf"


@pytest.fixture
def run(run: Callable[..., CommandResult]) -> Callable[..., CommandResult]:
    """`pigguf repair` with arguments."""
    return partial(run, "repair")


def test_the_program_exits_as_the_page_says(clamped: Path) -> None:
    command = [sys.executable, "-m", "pigguf", "repair", str(clamped)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (15, "")


def test_found_shown_fixed_and_sound(
    clamped: Path, run: Callable[..., CommandResult], tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(clamped.read_bytes())
    found = run(path)
    assert found.returncode == exit_codes.FOUND.code == 15
    assert found.stderr == ""
    assert "window-not-multiplied" in found.stdout
    assert f"pigguf repair {path} --rope-factor 4\n" in found.stdout

    shown = run(path, "--rope-factor", "4", "--dry-run")
    assert (shown.returncode, path.read_bytes()) == (0, clamped.read_bytes())
    assert shown.stdout == "llama.context_length\n-  64 (u32)\n+  256 (u32)\n"
    assert "nothing was written" in shown.stderr
    assert "extended from 64 to 256" in shown.stderr

    fixed = run(path, "--rope-factor", "4")
    assert fixed.returncode == 0
    assert f"written  {path}, verified" in fixed.stdout
    assert read_header(path).metadata["llama.context_length"] == u32(256)

    sound = run(path)
    assert (sound.returncode, sound.stderr) == (0, "")
    assert "no faults found" in sound.stdout
    again = run(path, "--rope-factor", "4")
    assert (again.returncode, again.stdout) == (0, "")
    assert "nothing to change" in again.stderr


def test_remaining_faults_are_noted(clamped: Path, run: Callable[..., CommandResult], tmp_path: Path) -> None:
    result = run(clamped, "--set", "general.name=Piglet", "-o", tmp_path / "copy.gguf")
    assert result.returncode == 0
    assert "still wrong: llama.context_length is 64" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--set", "general.name"], exit_codes.USAGE, "has no value"),
        (["--set", "a=u8:1", "--set", "a=u8:2"], exit_codes.USAGE, "set twice"),
        (["--remove", "no.such"], exit_codes.USAGE, "no.such"),
        (["--rope-factor", "3", "--context", "256"], exit_codes.ROPE, "256"),
        (["--set", "llama.rope.scaling.type=wobbly"], exit_codes.GGUF, "wobbly"),
        (["--rope-factor", "4", "-o", "/no/such/directory/copy.gguf"], exit_codes.FILE, "/no/such/directory"),
    ],
)
def test_a_refusal_is_one_line_with_a_hint(
    arguments: list[str],
    code: exit_codes.ExitCode,
    words: str,
    clamped: Path,
    run: Callable[..., CommandResult],
) -> None:
    result = run(clamped, *arguments)
    assert result.returncode == code.code
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert words in error
    assert hint.startswith("hint: ")
    assert result.stdout == ""


def test_with_json_stdout_has_only_json(clamped: Path, run: Callable[..., CommandResult]) -> None:
    found = run(clamped, "--json")
    assert found.returncode == exit_codes.FOUND.code
    data = json.loads(found.stdout)
    assert data["command"] == ["pigguf", "repair", str(clamped), "--rope-factor", "4"]
    assert data["path"] is None
