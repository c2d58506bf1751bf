"""`pigguf tune`, as a program and as a person sees it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command_line import CommandResult
from support.tiny_gguf import write_tiny

from pigguf.cli import exit_codes
from pigguf.gguf_io import read_header
from pigguf.inference.tuning import TuningProfile, load_tuning_profile


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.gguf")


def test_output_lists_measured_chosen_and_skipped_settings(
    run: Callable[..., CommandResult], tiny: Path
) -> None:
    result = run("tune", tiny, "--seconds", "20")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["compared", "setting", "depth", "prefill", "decode", "samples", "cache"]
    assert any(line.startswith("flash attention  on") for line in lines)
    assert "Chosen" in lines
    assert any(line.startswith("batch") and "tokens/s)" in line for line in lines)
    path = next(line.split(maxsplit=2)[2] for line in lines if line.startswith("stored in"))
    assert Path(path).is_file()
    # the tiny model's heads of 16 dimensions fit no quantized block
    assert "skipped: cache types: q8_0/f16: a KV cache of type q8_0 does not fit" in result.stderr


def test_json_is_the_saved_tuning_profile(run: Callable[..., CommandResult], tiny: Path) -> None:
    data = json.loads(run("tune", tiny, "--seconds", "20", "--json").stdout)
    assert set(data) == {"tuning", "choices", "measurements", "left_out", "seconds", "path"}
    assert TuningProfile.from_json(data["tuning"]) == load_tuning_profile(read_header(tiny))
    assert data["tuning"]["source"] == "measured"
    assert {"group", "setting", "speed", "samples", "cache_bytes"} == set(data["measurements"][0])


def test_a_file_that_is_not_a_model_is_refused(run: Callable[..., CommandResult], tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"no")
    assert run("tune", tmp_path / "no.gguf").returncode == exit_codes.GGUF.code
    assert run("tune", tmp_path / "no.gguf", "--seconds", "0").returncode == exit_codes.USAGE.code


def test_ctrl_c_leaves_nothing_behind(smollm2_gguf: Path, cache: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "pigguf", "tune", str(smollm2_gguf)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )
    time.sleep(6)  # in the middle of a comparison
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == exit_codes.INTERRUPTED.code
    assert out == ""
    assert err.endswith("interrupted\n")
    assert "Traceback" not in err
    assert not list(cache.rglob("*.json"))
