"""`pigguf eval kl` and `pigguf eval sweep`: options arrive, verdicts are shown, pages are written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.tiny_checkpoints import make_checkpoint

import pigguf


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, novel: str) -> Path:
    """checkpoint/, and of it f32.gguf and q8_0.gguf; novel.txt, some 300 tokens."""
    path = tmp_path_factory.mktemp("folder")
    make_checkpoint(path / "checkpoint", max_position_embeddings=128)
    pigguf.convert(path / "checkpoint", path / "f32.gguf", type="F32")
    pigguf.convert(path / "checkpoint", path / "q8_0.gguf", type="Q8_0")
    (path / "novel.txt").write_text(novel[:400], encoding="utf-8")
    return path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pigguf", "eval", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
    )


KL = ("kl", "q8_0.gguf", "--text", "novel.txt", "--window", "64")
SWEEP = ("sweep", "f32.gguf", "--text", "novel.txt")


def test_kl_prints_tables_and_the_verdict_and_writes_a_page(folder: Path) -> None:
    result = run(folder, *KL, "--reference", "checkpoint", "--max-windows", "2", "--html", "kl.html")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("KL divergence from the reference in nats")
    assert lines[2].split()[:2] == ["1–63", "126"]
    assert lines[-1].startswith("On average the predictions are ")
    root = ElementTree.fromstring((folder / "kl.html").read_text().removeprefix("<!DOCTYPE html>"))
    assert root.findtext(".//h1") == "KL divergence of q8_0.gguf"
    assert lines[-1] in "".join(root.itertext())


def test_kl_takes_a_cache_type_for_the_model_alone(folder: Path) -> None:
    same = run(folder, "kl", "f32.gguf", *KL[2:], "--reference", "f32.gguf", "--json")
    other = run(
        folder, "kl", "f32.gguf", *KL[2:], "--reference", "f32.gguf", "--json", "--cache-type", "bf16"
    )
    assert (same.returncode, other.returncode) == (0, 0), same.stderr + other.stderr
    same_data, other_data = json.loads(same.stdout), json.loads(other.stdout)
    assert same_data["results"]["overall"]["most"] == 0.0
    assert other_data["results"]["overall"]["mean"] > 0.0
    assert other_data["settings"]["cache_type"] == "bf16"
    assert other_data["settings"]["reference"]["cache_type"] == "f16"


def test_sweep_prints_tables_and_the_verdict_and_writes_a_page(folder: Path) -> None:
    options = ("--factors", "1.5,3", "--windows", "32,64", "--max-windows", "2", "--html", "sweep.html")
    result = run(folder, *SWEEP, *options)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "Perplexity by factor and window (half-window)"
    assert [line.split()[0] for line in lines[1:5]] == ["factor", "1", "1.5", "3"]
    assert lines[-1].startswith("Factor ") or lines[-1].startswith("No one factor ")
    root = ElementTree.fromstring((folder / "sweep.html").read_text().removeprefix("<!DOCTYPE html>"))
    assert root.findtext(".//h1") == "Sweep of f32.gguf"


@pytest.mark.parametrize(
    "options", [("--factors", "1,x"), ("--windows", "2048;4096"), ("--max-windows", "0")]
)
def test_options_that_are_not_numbers_are_wrong_usage(folder: Path, options: tuple[str, str]) -> None:
    result = run(folder, *SWEEP, *options)
    assert result.returncode == 2
    assert options[1] in result.stderr
    assert not result.stdout
