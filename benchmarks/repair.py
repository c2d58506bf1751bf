#!/usr/bin/env python3
"""Claim: repairing a GGUF takes at most 1.2 times as long as a safe copy with the system's own tools.

usage: benchmarks/repair.py FOLDER

On a seeded GGUF of 1 GB (F16, 32 tensors), each five times in turn, the median counts:
- a copy: `cp FILE COPY && sync COPY` against `pigguf repair FILE -o COPY` with a longer header, so that the
  data moves by some bytes and the system cannot copy whole pages;
- in place: `cp FILE NEW && sync NEW && mv NEW FILE` against `pigguf repair FILE` with a header of the same
  length. Both replace the file atomically, and both end only when the bytes are on disk.
The claim is about the repair's own seconds, from opening the file to the final rename (from `--json`); the
whole process, which includes starting Python, is reported too, and so is `cp` alone, without sync. Memory is
the peak of the process. The file is in the page cache for all. FOLDER needs 4 GB of free space.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from peers import Run, machine, measured, pigguf

from pigguf.gguf_io import PlannedTensor, TensorType, write_gguf
from pigguf.gguf_io.metadata import array, f32, string, u32

REPEATS = 5
ROWS, COLUMNS, TENSORS = 4096, 4096, 32  # 32 x 32 MiB: 1.07 GB


def main(folder: Path) -> None:
    source, copy, new = (folder / name for name in ("model.gguf", "copy.gguf", "new.gguf"))
    folder.mkdir(parents=True, exist_ok=True)
    if not source.exists():
        make(source)
    longer = f"general.description={'x' * 5000}"
    runs: dict[str, Callable[[], Run]] = {
        "cp": lambda: measured("cp", source, copy),
        "cp, sync": lambda: shell(f"cp '{source}' '{copy}' && sync '{copy}'"),
        "repair to a copy": lambda: pigguf(
            "repair", source, "-o", copy, "--json", "--rope-factor", "8", "--set", longer
        ),
        "cp, sync, mv": lambda: shell(f"cp '{copy}' '{new}' && sync '{new}' && mv '{new}' '{copy}'"),
        "repair in place": lambda: pigguf("repair", copy, "--json", "--rope-factor", "8"),
    }
    taken: dict[str, list[Run]] = {name: [] for name in runs}
    shell(f"cat '{source}' > /dev/null")
    for _ in range(REPEATS):
        for name, run in runs.items():
            copy.unlink(missing_ok=True)
            if name in ("cp, sync, mv", "repair in place"):
                shell(f"cp '{source}' '{copy}' && sync '{copy}'")
            taken[name].append(run())
            print(f"{name}: {taken[name][-1].seconds:.2f} s", file=sys.stderr, flush=True)
    own = {name: statistics.median(map(own_seconds, all_)) for name, all_ in taken.items()}
    print(machine())
    print(f"{source.stat().st_size / 1e9:.2f} GB")
    print("| what | wall, s | its own, s | peak memory, MB |\n|---|---|---|---|")
    for name, all_ in taken.items():
        wall, peak = statistics.median(run.seconds for run in all_), max(run.peak_bytes for run in all_)
        print(f"| {name} | {wall:.2f} | {own[name]:.2f} | {peak / 1e6:.0f} |")
    for ours, peer in (("repair to a copy", "cp, sync"), ("repair in place", "cp, sync, mv")):
        print(f"{ours}: {own[ours] / own[peer]:.2f} of {peer} (claim: 1.20)")


def shell(line: str) -> Run:
    return measured("sh", "-c", line)


def own_seconds(run: Run) -> float:
    """Return the seconds that a repair reports, or the wall time of a process that reports none."""
    if not run.output.startswith("{"):
        return run.seconds
    return float(json.loads(run.output)["seconds"])


def make(path: Path) -> None:
    """Write a GGUF with a context length of 2048 and a factor of 8, whose window was not multiplied."""
    metadata = {
        "general.architecture": string("llama"),
        "general.name": string("pig"),
        "llama.context_length": u32(2048),
        "llama.rope.freq_base": f32(10000.0),
        "llama.rope.scaling.type": string("linear"),
        "llama.rope.scaling.factor": f32(8.0),
        "llama.rope.scaling.original_context_length": u32(2048),
        "tokenizer.ggml.tokens": array("str", tuple(f"token {i}" for i in range(32000))),
    }
    slabs = tuple((start, start + 256) for start in range(0, ROWS, 256))
    tensors = [
        PlannedTensor(f"blk.{i}.weight", (ROWS, COLUMNS), TensorType.F16, slabs, partial(rows, i))
        for i in range(TENSORS)
    ]
    write_gguf(path, metadata, tensors)


def rows(seed: int, start: int, stop: int) -> np.ndarray:
    rng = np.random.default_rng((seed, start))
    return rng.integers(0, 1 << 14, (stop - start, COLUMNS), np.uint16).view(np.float16)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
