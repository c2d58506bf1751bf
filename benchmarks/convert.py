#!/usr/bin/env python3
"""Claim: converting is at least twice as fast as llama.cpp's converter, in constant memory.

usage: benchmarks/convert.py FOLDER TOKENIZER_CHECKPOINT

On a seeded checkpoint of 1.17 B weights (2.34 GB of bfloat16), all in one run:
- F16: `pigguf convert` against convert_hf_to_gguf.py: at most half of the wall time;
- memory: at most 400 MB, and the same within 10 % on a checkpoint of twice the size;
- Q4_K_M in one pass against convert_hf_to_gguf.py to F16 followed by llama_model_quantize: at most 0.85 of
  the wall time, without an intermediate file.
pigguf's times include fsync and verification; the peers' include neither. Each is run three times in turn,
files are removed between runs, and the median counts. FOLDER needs 14 GB of free space.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from peers import Run, big_checkpoint, llama_cpp_convert, llama_cpp_quantize, machine, pigguf

REPEATS = 3
Q4_K_M = 15  # LLAMA_FTYPE_MOSTLY_Q4_K_M


def main(folder: Path, tokenizer: Path) -> None:
    source = big_checkpoint(folder, tokenizer, layers=22)
    twice = big_checkpoint(folder, tokenizer, layers=44)
    ours, theirs, between = folder / "ours.gguf", folder / "theirs.gguf", folder / "between.gguf"

    def convert_then_quantize() -> Run:
        first = llama_cpp_convert(source, between, "f16")
        second = llama_cpp_quantize(between, theirs, Q4_K_M)
        return Run(first.seconds + second.seconds, max(first.peak_bytes, second.peak_bytes))

    results = alternately(
        {
            "pigguf F16": lambda: pigguf("convert", source, "-o", ours, "--type", "F16"),
            "llama.cpp F16": lambda: llama_cpp_convert(source, theirs, "f16"),
            "pigguf Q4_K_M, one pass": lambda: pigguf("convert", source, "-o", ours, "--type", "Q4_K_M"),
            "llama.cpp F16, then Q4_K_M": convert_then_quantize,
            "pigguf F16, twice the size": lambda: pigguf("convert", twice, "-o", ours, "--type", "F16"),
        },
        [ours, theirs, between],
    )
    print(machine())
    print("| what | wall, s | peak memory, MB |\n|---|---|---|")
    for name, run in results.items():
        print(f"| {name} | {run.seconds:.1f} | {run.peak_bytes / 1e6:.0f} |")
    f16, peer = results["pigguf F16"], results["llama.cpp F16"]
    q4, peer_q4 = results["pigguf Q4_K_M, one pass"], results["llama.cpp F16, then Q4_K_M"]
    double = results["pigguf F16, twice the size"]
    print(f"F16: {f16.seconds / peer.seconds:.2f} of the peer's time (claim: 0.50)")
    print(f"Q4_K_M: {q4.seconds / peer_q4.seconds:.2f} of the peers' time (claim: 0.85)")
    print(f"memory at twice the size: {double.peak_bytes / f16.peak_bytes:.2f} (claim: 0.90 to 1.10)")


def alternately(runs: dict[str, Callable[[], Run]], made: list[Path]) -> dict[str, Run]:
    """Return the median of each, run in turn so that a slow minute affects all of them."""
    taken: dict[str, list[Run]] = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, run in runs.items():
            for file in made:
                file.unlink(missing_ok=True)
            taken[name].append(run())
            print(f"{name}: {taken[name][-1].seconds:.1f} s", file=sys.stderr, flush=True)
    return {
        name: Run(statistics.median(r.seconds for r in all_), max(r.peak_bytes for r in all_))
        for name, all_ in taken.items()
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
