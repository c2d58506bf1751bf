"""Read checkpoints and LoRA adapters: config files and lazy tensors.

    with Checkpoint.open("path/to/checkpoint") as checkpoint:
        checkpoint.config["max_position_embeddings"], checkpoint.tensors["lm_head.weight"].shape

    with Adapter.open("path/to/adapter") as adapter:
        tensors = merge_adapter(checkpoint, adapter)

A checkpoint is a directory with config files, a tokenizer's files, and weights in one of these formats:

    safetensors_file.py        safetensors, in one file or in shards with an index (weight_files.py)
    torch_file.py              pytorch_model.bin, whose pickle is read without running code
    meta_llama_checkpoint.py   Meta's params.json with consolidated.NN.pth, whose shards are put together
    fp8.py                     float8 weights with scales, which are dequantized
    pooling_config.py          how sentence-transformers pools the hidden states

An adapter is a directory as PEFT saves it (adapter.py, adapter_merge.py). OWNER/NAME@REVISION is a repository
on the Hugging Face hub (resolve_source.py, hub_download.py). Tensors are read in rows with positioned
reads instead of a memory map, so memory stays flat.

Refused with a reason: weights quantized in other ways (GPTQ, AWQ, bitsandbytes, ...), and adapters with more
tokens than their base model.
"""

from __future__ import annotations

from pigguf.checkpoint.adapter import Adapter, AdapterSummary
from pigguf.checkpoint.adapter_merge import merge_adapter
from pigguf.checkpoint.checkpoint import Checkpoint, model_name_from_path
from pigguf.checkpoint.pooling_config import read_pooling_config
from pigguf.checkpoint.safetensors_file import write_safetensors

__all__ = [
    "Adapter",
    "AdapterSummary",
    "Checkpoint",
    "merge_adapter",
    "model_name_from_path",
    "read_pooling_config",
    "write_safetensors",
]
