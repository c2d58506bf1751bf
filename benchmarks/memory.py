#!/usr/bin/env python3
"""Claim: a checkpoint of a 7B model's shape (13 GB) is converted in at most 500 MB of memory.

usage: benchmarks/memory.py FOLDER TOKENIZER_CHECKPOINT [--type TYPE] [--layers N] [--keep]

The checkpoint has Llama 7B's shape in float16, 32 layers, in one sparse file of zeros, which reads as 13 GB
but takes no disk space. The GGUF takes space: FOLDER needs 13.5 GB for F16, 7.2 GB for Q8_0. Fewer layers
need less, and the result should be the same. The peak is that of the child process (resource usage, including
mapped files and libraries).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from peers import machine, pigguf

LIMIT = 500e6
HIDDEN, INNER, HEADS, VOCAB = 4096, 11008, 32, 32000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("tokenizer", type=Path, help="a checkpoint with a tokenizer of at most 32000 tokens")
    parser.add_argument("--type", default="Q8_0")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--keep", action="store_true", help="leave what was made")
    options = parser.parse_args()
    source = hollow_checkpoint(options.folder, options.tokenizer, options.layers)
    target = options.folder / "hollow.gguf"
    weights = (source / "model.safetensors").stat()
    try:
        run = pigguf("convert", source, "-o", target, "--type", options.type)
        made = target.stat().st_size
    finally:
        if not options.keep:
            target.unlink(missing_ok=True)
            shutil.rmtree(source)
    print(machine())
    print(
        "| layers | checkpoint, GB | type | GGUF, GB | wall, s | peak memory, MB |\n|---|---|---|---|---|---|"
    )
    print(
        f"| {options.layers} | {weights.st_size / 1e9:.2f} | {options.type} | {made / 1e9:.2f} "
        f"| {run.seconds:.1f} | {run.peak_bytes / 1e6:.0f} |"
    )
    print(f"peak memory: {run.peak_bytes / 1e6:.0f} MB (claim: at most {LIMIT / 1e6:.0f})")
    sys.exit(run.peak_bytes > LIMIT)


def hollow_checkpoint(folder: Path, tokenizer: Path, layers: int) -> Path:
    """Write a checkpoint of Llama 7B's shape: a sparse file without data, and a smaller tokenizer."""
    path = folder / f"hollow-llama-{layers}-layers"
    path.mkdir(parents=True)
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{kind}_proj.weight": (HIDDEN, HIDDEN) for kind in "qkvo"}
        shapes |= {f"{prefix}.mlp.{kind}_proj.weight": (INNER, HIDDEN) for kind in ("gate", "up")}
        shapes |= {f"{prefix}.mlp.down_proj.weight": (HIDDEN, INNER)}
        shapes |= {f"{prefix}.{kind}_layernorm.weight": (HIDDEN,) for kind in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + at)
    for file in tokenizer.iterdir():
        if file.name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"):
            shutil.copy(file, path)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "vocab_size": VOCAB,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    }
    (path / "config.json").write_text(json.dumps(config, indent=2))
    return path


if __name__ == "__main__":
    main()
