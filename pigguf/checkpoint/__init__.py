"""Checkpoints on disk -> config files and lazy tensors.

    with Checkpoint.open("path/to/checkpoint") as checkpoint:
        checkpoint.config["max_position_embeddings"], checkpoint.tensors["lm_head.weight"].shape

A checkpoint is a directory as transformers saves it: config.json, safetensors in one file or in
shards with an index, and the tokenizer's files. Nothing is loaded before it is read, and tensors
are read in rows with positioned reads, not mapped, so that memory stays flat.

Left out, and refused with a reason: torch's .bin files, adapters, hub names.
"""

from __future__ import annotations

from pigguf.checkpoint.directory import Checkpoint
from pigguf.checkpoint.safetensors_file import write_safetensors

__all__ = ["Checkpoint", "write_safetensors"]
