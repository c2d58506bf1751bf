"""Thousands of damaged GGUFs, read in a child that has little memory and little time for each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FUZZ = Path(__file__).parent / "fuzz_gguf.py"
DAMAGES = ("flip_bits", "set_fields", "swap_fields", "cut_end", "splice", "drop")


def survive(directory: Path, seed: int, count: int) -> dict[str, Any]:
    """What became of so many files, when the child came to its end."""
    command = [sys.executable, "-W", "error", str(FUZZ), str(directory), str(seed), str(count)]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-4000:]
    told: dict[str, Any] = json.loads(child.stdout)
    assert sum(told["refused"].values()) + sum(told["accepted"].values()) == count
    return told


def test_damaged_files_are_read_or_refused_and_never_anything_else(tmp_path: Path) -> None:
    told = survive(tmp_path, seed=1, count=2000)
    for damage in DAMAGES:
        assert told["refused"][damage], damage
    assert sum(told["accepted"].values()) > 100
    assert len(told["places"]) > 25, told["places"]  # of the code that refuses, reached


@pytest.mark.slow
def test_many_more_damaged_files(tmp_path: Path) -> None:
    told = survive(tmp_path, seed=2, count=100_000)
    assert len(told["places"]) > 35, told["places"]
