#!/usr/bin/env python3
"""Claim: repairing a GGUF takes at most 1.2 times what the system's own tools take to copy it safely.

usage: benchmarks/repair.py FOLDER

On a seeded GGUF of 1 GB (F16, 32 tensors), each five times in turn, the median counts:
- a copy: `cp FILE COPY && sync COPY` against `pigguf repair FILE -o COPY` with a longer header, so that the
  data moves by some bytes and the system cannot copy whole pages;
- in place: `cp FILE NEW && sync NEW && mv NEW FILE` against `pigguf repair FILE` with a header as long as the
  old one. Both replace the file in one step, and neither is done before its bytes are safe.
The claim is on the repair's own seconds, from opening the file to the bytes safe under their name (`--json`
tells them); the whole process, which starts Python, is told beside it, and so is `cp` alone, which leaves the
bytes to the system. Memory is the process's peak. The file is in the page cache for all. FOLDER needs 4 GB.
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
    """What a repair says that it took; all of a process that says nothing."""
    if not run.output.startswith("{"):
        return run.seconds
    return float(json.loads(run.output)["seconds"])


def make(path: Path) -> None:
    """A file that says 2048 tokens and a factor of 8: its window was not multiplied."""
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
