#!/usr/bin/env python3
"""Claim: perplexity takes at most 1.1 times as long as llama.cpp's own tool, in memory bounded by a batch.

usage: benchmarks/eval_speed.py MODEL [--tokens N] [--repeats N]

`pigguf eval perplexity` and llama-perplexity measure the same windows of the same text (chapters of a novel
in this repository) with llama.cpp's half-window method, all in one run:
- result: the same perplexity within 0.1 %;
- time: from process start to exit, at most 1.1 times llama-perplexity's;
- memory: the peak minus the KV cache does not grow with the window (within 10 %); llama-perplexity's is shown
  for comparison.
Each is run --repeats times (3), in turn, and the median counts. --tokens (16384) are measured at every
window. The peer is built at the first run (llama_perplexity.py).
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import llama_perplexity
from peers import Run, machine, measured, pigguf

from pigguf.inference.engine import Model

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = (
    ROOT / "scripts" / "demo_text" / "persuasion-chapters-1-3.txt",
    ROOT / "tests" / "data" / "persuasion-chapters-3-5.txt",
)
WINDOWS = (512, 2048, 8192)


@dataclass(frozen=True)
class Figures:
    """One program at one window: the median run, and the perplexity that it found."""

    seconds: float
    peak_bytes: int
    perplexity: float


def main(model: Path, tokens: int, repeats: int) -> None:
    windows = [window for window in WINDOWS if window <= tokens]
    if not windows:
        sys.exit(f"--tokens {tokens} do not fill a window of {WINDOWS[0]}")
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text("".join(file.read_text(encoding="utf-8") for file in CHAPTERS), encoding="utf-8")
        os.environ["XDG_CACHE_HOME"] = folder
        runs: dict[tuple[str, int], Callable[[], Run]] = {}
        for window in windows:
            runs["llama-perplexity", window] = lambda w=window: measured(
                *llama_perplexity.command(model, text, w, tokens // w)
            )
            runs["pigguf", window] = lambda w=window: ours(model, text, w, tokens // w)
        results = alternately(runs, repeats)
    show(results, windows, model)


def ours(model: Path, text: Path, window: int, chunks: int) -> Run:
    options = ["--windows", str(window), "--max-tokens", str(chunks * window), "--json"]
    return pigguf("eval", "perplexity", model, "--text", text, *options)


def found(program: str, output: str) -> float:
    if program == "llama-perplexity":
        return llama_perplexity.estimate(output).perplexity
    found = re.search(r'"perplexity": ([0-9.]+)', output)
    if not found:
        raise SystemExit(f"pigguf gave no perplexity:\n{output}")
    return float(found[1])


def alternately(
    runs: dict[tuple[str, int], Callable[[], Run]], repeats: int
) -> dict[tuple[str, int], Figures]:
    """Return the median of each, run in turn so that a slow minute affects all of them."""
    taken: dict[tuple[str, int], list[Run]] = {name: [] for name in runs}
    for _ in range(repeats):
        for (program, window), run in runs.items():
            taken[program, window].append(run())
            seconds = taken[program, window][-1].seconds
            print(f"{program}, window {window}: {seconds:.1f} s", file=sys.stderr, flush=True)
    return {
        (program, window): Figures(
            statistics.median(run.seconds for run in all_),
            max(run.peak_bytes for run in all_),
            found(program, all_[-1].output),
        )
        for (program, window), all_ in taken.items()
    }


def show(results: dict[tuple[str, int], Figures], windows: list[int], model: Path) -> None:
    with Model.open(model, vocab_only=True) as opened:
        cache = {window: opened.kv_cache_bytes(window) for window in windows}
    print(machine())
    print("| window | program | perplexity | wall, s | peak memory, MB | less the KV cache, MB |")
    print("|---|---|---|---|---|---|")
    for (program, window), run in sorted(results.items(), key=lambda item: item[0][1]):
        rest = (run.peak_bytes - cache[window]) / 1e6
        print(
            f"| {window} | {program} | {run.perplexity:.4f} | {run.seconds:.1f} "
            f"| {run.peak_bytes / 1e6:.0f} | {rest:.0f} |"
        )
    for window in windows:
        mine, peer = results["pigguf", window], results["llama-perplexity", window]
        apart = abs(mine.perplexity / peer.perplexity - 1)
        print(
            f"window {window}: {mine.seconds / peer.seconds:.2f} of the peer's time (claim: 1.10), "
            f"perplexity {apart:.3%} apart (claim: 0.1 %)"
        )
    rests = [results["pigguf", window].peak_bytes - cache[window] for window in windows]
    print(f"memory less the KV cache, largest window to smallest: {rests[-1] / rests[0]:.2f} (claim: 1.10)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", metavar="MODEL", type=Path)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    main(given.model, given.tokens, given.repeats)
