"""Checkpoints on disk -> config files and lazy tensors.

    with Checkpoint.open("path/to/checkpoint") as checkpoint:
        checkpoint.config["max_position_embeddings"], checkpoint.tensors["lm_head.weight"].shape

A checkpoint is a directory with a tokenizer's files and, in one of these forms, weights and a config:

    safetensors_file.py   config.json with safetensors, in one file or in shards with an index (weights.py)
    torch_file.py         the same with pytorch_model.bin, whose pickles run no code
    meta.py               Meta's params.json with consolidated.*.pth, whose pieces are joined
    pooling.py            how sentence-transformers pools its states
    float8.py             matrices of eight bits with scales beside them become numbers again

A hub's name, OWNER/NAME@REVISION, stands for what is fetched from there. Nothing is loaded before it is
read, and tensors are read in rows with positioned reads, not mapped, so that memory stays flat.

    with Adapter.open("path/to/adapter") as adapter:
        tensors = with_adapter(checkpoint, adapter)

An adapter is a directory as PEFT saves it (LoRA); its tensors may be in a .bin of torch's.

Left out, and refused with a reason: weights quantized in other ways (GPTQ, AWQ, bitsandbytes, ...), and
adapters for more tokens than their base has.
"""

from __future__ import annotations

from pigguf.checkpoint.adapter import Adapter, AdapterFacts
from pigguf.checkpoint.checkpoint import Checkpoint, model_name
from pigguf.checkpoint.merge_adapter import with_adapter
from pigguf.checkpoint.pooling_config import read_pooling
from pigguf.checkpoint.safetensors_file import write_safetensors

__all__ = [
    "Adapter",
    "AdapterFacts",
    "Checkpoint",
    "model_name",
    "read_pooling",
    "with_adapter",
    "write_safetensors",
]
