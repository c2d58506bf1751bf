"""Thousands of damaged GGUFs, read in a child process with little memory and little time for each."""

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
    """Run `count` cases in a child process, and return its counts."""
    command = [sys.executable, "-W", "error", str(FUZZ), str(directory), str(seed), str(count)]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-4000:]
    counts: dict[str, Any] = json.loads(child.stdout)
    assert sum(counts["refused"].values()) + sum(counts["accepted"].values()) == count
    return counts


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    counts = survive(tmp_path, seed=1, count=2000)
    for damage in DAMAGES:
        assert counts["refused"][damage], damage
    assert sum(counts["accepted"].values()) > 100
    assert len(counts["raised_at"]) > 25, counts["raised_at"]  # lines of code that raised


@pytest.mark.slow
def test_many_more_damaged_files(tmp_path: Path) -> None:
    counts = survive(tmp_path, seed=2, count=100_000)
    assert len(counts["raised_at"]) > 35, counts["raised_at"]
