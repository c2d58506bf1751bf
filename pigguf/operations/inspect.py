"""Inspect: what a GGUF file contains, from its header and its small rope tensors.

Works for every architecture: what a file does not state is None, and what its keys do not determine, such as
the KV cache of a model with sliding window attention, is omitted rather than guessed. Not here: running the
model, and whether it fits in memory (inference/memory_planning).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pigguf.gguf_io import (
    GGUFFile,
    TensorType,
    block_elements,
    errors_name_file,
    read_header,
    row_bytes,
)
from pigguf.gguf_io.metadata import TypedValue, get_array, get_value
from pigguf.llama_cpp_internals.sliding_window import SLIDING_WINDOWS
from pigguf.operations.rope_from_gguf import rope_from_gguf
from pigguf.rope import Positions

KV_CACHE_TYPES = (TensorType.F16, TensorType.Q8_0, TensorType.Q4_0)

# Keys of models whose KV cache is not a row of K and of V for each token and layer (llama.cpp
# src/llama-model.cpp, create_memory): sliding window, recurrent, compressed, shared or absent layers.
_OTHER_CACHE_KEYS = (
    "attention.sliding_window",
    "attention.kv_lora_rank",
    "attention.compress_ratios",
    "attention.recurrent_layers",
    "attention.shared_kv_layers",
    "attention.indexer.head_count",
    "full_attention_interval",
    "ssm.state_size",
    "ssm.conv_kernel",
    "wkv.head_size",
    "kda.head_dim",
    "shortconv.l_cache",
    "nextn_predict_layers",
    "decoder_block_count",
    "decoder_start_token_id",
    "attention.relative_buckets_count",
)
# Architectures with a sliding window even if no key states one.
_ALWAYS_SLIDING = frozenset(name for name, window in SLIDING_WINDOWS.items() if window.default_window)

# What else affects positions: a tensor's name or a key without its prefix, and a sentence about it.
_POSITION_NOTES = {
    "position_embd.weight": "positions are rows of a learned table, position_embd.weight",
    "attention.max_alibi_bias": "positions are ALiBi biases",
    "attention.sliding_window": "layers with sliding window attention may use other positions",
    "rope.dimension_sections": "positions have several sections, each with its own dimensions (M-RoPE)",
    "ssm.state_size": "recurrent layers use no positions",
    "wkv.head_size": "recurrent layers use no positions",
    "shortconv.l_cache": "convolution layers use no positions",
}


@dataclass(frozen=True)
class KVCacheSize:
    """The size of the KV cache with K and V in one type.

    Attributes:
        type: The type.
        bytes_per_token: Bytes for each token.
        bytes_at_full_window: Bytes at the file's context length.
    """

    type: str
    bytes_per_token: int
    bytes_at_full_window: int


@dataclass(frozen=True)
class InspectionReport:
    """What a GGUF file contains.

    Attributes:
        path: The file, or the first one of a split model.
        bytes: The size of all files.
        shards: Every file in order; one if the model is not split.
        architecture: general.architecture.
        name: general.name, or None.
        parameters: The number of weights.
        types: Bytes stored in each tensor type, largest first.
        layers, embedding_length, heads, kv_heads: The model's shape; None if absent or different by layer.
        tokenizer: The tokenizer's type and pre-tokenizer, "gpt2 (smollm)", or None.
        tokens: The size of the vocabulary, or None.
        chat_template: Whether there is a chat template.
        rope: The positions as llama.cpp reads them; None if the file has no context length (an adapter, a
            projector).
        position_notes: What else affects positions, one sentence each.
        cache: The KV cache's size by type; empty if the keys do not determine it.
        metadata: Every key, with its typed value.
    """

    path: Path
    bytes: int
    shards: tuple[Path, ...]
    architecture: str
    name: str | None
    parameters: int
    types: Mapping[str, int]
    layers: int | None
    embedding_length: int | None
    heads: int | None
    kv_heads: int | None
    tokenizer: str | None
    tokens: int | None
    chat_template: bool
    rope: Positions | None
    position_notes: tuple[str, ...]
    cache: tuple[KVCacheSize, ...]
    metadata: Mapping[str, TypedValue]


def inspect(path: str | os.PathLike[str]) -> InspectionReport:
    """Read a GGUF file's header and report what it contains.

    Raises:
        ReadError: The system refuses to read the file.
        GGUFError: The file is damaged, truncated or not a GGUF.
        UnsupportedModel: A kind of GGUF that cannot be read.
    """
    file = read_header(path)
    with errors_name_file(file.path):
        return inspect_header(file)


def inspect_header(file: GGUFFile) -> InspectionReport:
    """Report what a file contains whose header was read already; raises as `inspect` does."""
    keys = _ArchitectureKeys(file)
    rope = rope_from_gguf(file) if f"{file.architecture}.context_length" in file.metadata else None
    return InspectionReport(
        path=file.path,
        bytes=file.size,
        shards=file.shards,
        architecture=file.architecture,
        name=get_value(file.metadata, "general.name", str),
        parameters=sum(tensor.elements for tensor in file.tensors.values()),
        types=_bytes_by_type(file),
        layers=keys.number("block_count"),
        embedding_length=keys.number("embedding_length"),
        heads=keys.number("attention.head_count"),
        kv_heads=keys.kv_heads,
        tokenizer=_tokenizer(file),
        tokens=_token_count(file),
        chat_template="tokenizer.chat_template" in file.metadata,
        rope=rope,
        position_notes=_position_notes(file, keys),
        cache=() if rope is None else _cache_sizes(keys, rope.context_length),
        metadata=file.metadata,
    )


class _ArchitectureKeys:
    """The keys with the architecture's prefix."""

    def __init__(self, file: GGUFFile) -> None:
        self.architecture = file.architecture
        self._metadata = file.metadata

    def number(self, key: str) -> int | None:
        """Return a key's number, or None if it is absent or differs between layers."""
        typed = self.value(key)
        return (
            None
            if typed is None or typed.is_array
            else get_value(self._metadata, f"{self.architecture}.{key}", int)
        )

    def value(self, key: str) -> TypedValue | None:
        """Return a key's typed value, or None if it is absent."""
        return self._metadata.get(f"{self.architecture}.{key}")

    def has(self, key: str) -> bool:
        """Return whether a key is present and not 0, false or empty."""
        typed = self.value(key)
        return typed is not None and bool(typed.value)

    @property
    def kv_heads(self) -> int | None:
        """The number of KV heads: that of the heads if the file does not state it."""
        absent = self.value("attention.head_count_kv") is None
        return self.number("attention.head_count" if absent else "attention.head_count_kv")


def _bytes_by_type(file: GGUFFile) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for tensor in file.tensors.values():
        counted[tensor.type.name] += tensor.nbytes
    return dict(counted.most_common())


def _tokenizer(file: GGUFFile) -> str | None:
    model, pre = (get_value(file.metadata, f"tokenizer.ggml.{key}", str) for key in ("model", "pre"))
    return f"{model} ({pre})" if model and pre else model


def _token_count(file: GGUFFile) -> int | None:
    tokens = get_array(file.metadata, "tokenizer.ggml.tokens")
    return None if tokens is None else len(tokens)


def _position_notes(file: GGUFFile, keys: _ArchitectureKeys) -> tuple[str, ...]:
    notes = (text for name, text in _POSITION_NOTES.items() if name in file.tensors or keys.has(name))
    return tuple(dict.fromkeys(notes))


def _cache_sizes(keys: _ArchitectureKeys, context_length: int) -> tuple[KVCacheSize, ...]:
    """Return the KV cache's size by type, or () if the keys do not determine it.

    Source: llama.cpp src/llama-kv-cache.cpp: per token, layer and head a row of K and V, of whole blocks.
    """
    layers, heads = keys.number("block_count"), keys.number("attention.head_count")
    kv_heads, width = keys.kv_heads, keys.number("embedding_length")
    is_causal = keys.value("attention.causal") is None or keys.has("attention.causal")
    if not layers or not heads or not kv_heads or not width or not is_causal:
        return ()
    if keys.architecture in _ALWAYS_SLIDING or any(keys.has(key) for key in _OTHER_CACHE_KEYS):
        return ()
    key_dim = keys.number("attention.key_length") or width // heads
    value_dim = keys.number("attention.value_length") or width // heads
    sizes = []
    for kind in KV_CACHE_TYPES:
        if key_dim % block_elements(kind) or value_dim % block_elements(kind):
            continue
        per_token = layers * kv_heads * (row_bytes(kind, key_dim) + row_bytes(kind, value_dim))
        sizes.append(KVCacheSize(kind.name, per_token, per_token * context_length))
    return tuple(sizes)
