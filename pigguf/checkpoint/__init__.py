"""Checkpoints on disk -> config files and lazy tensors.

    with Checkpoint.open("path/to/checkpoint") as checkpoint:
        checkpoint.config["max_position_embeddings"], checkpoint.tensors["lm_head.weight"].shape

A checkpoint is a directory as transformers saves it: config.json, safetensors in one file or in
shards with an index, and the tokenizer's files. A hub's name, OWNER/NAME@REVISION, stands for
what is fetched from there. Nothing is loaded before it is read, and tensors
are read in rows with positioned reads, not mapped, so that memory stays flat.

    with Adapter.open("path/to/adapter") as adapter:
        tensors = with_adapter(checkpoint, adapter)

An adapter is a directory as PEFT saves it (LoRA); its tensors may be in a .bin of torch's.

Left out, and refused with a reason: checkpoints in torch's .bin files.
"""

from __future__ import annotations

from pigguf.checkpoint.adapter import Adapter, AdapterFacts
from pigguf.checkpoint.directory import Checkpoint, model_name
from pigguf.checkpoint.merge import with_adapter
from pigguf.checkpoint.safetensors_file import write_safetensors

__all__ = ["Adapter", "AdapterFacts", "Checkpoint", "model_name", "with_adapter", "write_safetensors"]
