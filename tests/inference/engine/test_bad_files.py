"""The process never aborts: thousands of bad files, opened in a child process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
FUZZER = TESTS / "fuzz" / "fuzz_engine.py"


def survive(tmp_path: Path, *sets: str) -> dict[str, tuple[int, int]]:
    """Return how many files of each set were refused and how many ran, if the child survives."""
    command = [sys.executable, "-W", "error", str(FUZZER), str(tmp_path), *sets]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    child = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = child.stdout.splitlines()
    assert child.returncode == 0, f"after {lines[-1:]}: {child.stderr[-2000:]}"
    summaries = [line.split() for line in lines if line.endswith(" ran")]
    return {words[0].rstrip(":"): (int(words[1]), int(words[3])) for words in summaries}


def test_cut_files_are_all_refused(tmp_path: Path) -> None:
    assert survive(tmp_path, "truncations:0x400") == {"truncations": (400, 0)}


def test_changed_headers_tensors_and_vocabularies_never_end_the_process(tmp_path: Path) -> None:
    counts = survive(
        tmp_path,
        "flips:1x250",
        "keys:1x150",
        "pairs:1x60",
        "tensors:1x80",
        "vocabularies:1x60",
        "weights:1x60",
    )
    assert set(counts) == {"flips", "keys", "pairs", "tensors", "vocabularies", "weights"}
    for name, (refused, ran) in counts.items():
        assert refused, name
        assert ran, name


def test_no_graph_ends_the_process(tmp_path: Path) -> None:
    counts = survive(
        tmp_path,
        "graphs:0x99",
        "graph_keys:1x90",
        "graph_tensors:1x90",
        "graph_pairs:1x60",
        "graph_sizes:1x60",
    )
    assert counts.pop("graphs") == (0, 29)
    for name, (refused, ran) in counts.items():
        assert refused, name
        assert ran, name


@pytest.mark.slow
def test_many_more_bad_files(tmp_path: Path) -> None:
    every = "truncations:0x9999", "keys:0x9999", "tensors:0x9999", "vocabularies:0x9999", "weights:0x9999"
    counts = survive(tmp_path, *every, "flips:2x10000", "pairs:2x2000")
    assert counts["truncations"][1] == 0
    assert sum(map(sum, counts.values())) > 15000


@pytest.mark.slow
def test_many_more_of_every_graph(tmp_path: Path) -> None:
    counts = survive(
        tmp_path, "graph_keys:2x5000", "graph_tensors:2x5000", "graph_pairs:2x2000", "graph_sizes:2x3000"
    )
    assert sum(map(sum, counts.values())) > 12000
