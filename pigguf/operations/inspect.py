"""inspect: what a person wants to know of a GGUF file, from its header and the few numbers of positions.

Works on every architecture: what a file does not say is None, and what its keys alone do not decide
(the cache of a model with a sliding window, say) is left out rather than guessed. Left out: running
the model, and whether this machine has room for it.
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
    named,
    read_header,
    row_bytes,
)
from pigguf.gguf_io.metadata import Typed, elements, get
from pigguf.operations.rope_from_gguf import rope_from_gguf
from pigguf.rope import RopeScaling

KV_CACHE_TYPES = (TensorType.F16, TensorType.Q8_0, TensorType.Q4_0)

# Keys of models whose memory is not one row of K and one of V a token and layer (llama.cpp
# src/llama-model.cpp, create_memory): windowed, recurrent, compressed, shared or no layers of cache.
_OTHER_MEMORY = (
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
# Architectures that llama.cpp gives a sliding window whatever the keys say (src/models/, n_swa = ...).
_WINDOWED = ("llama4", "gemma2", "exaone4", "exaone-moe", "smallthinker")

# What else says how positions are read: a tensor's name or the end of a key -> in words.
_OTHER_POSITIONS = {
    "position_embd.weight": "positions are rows of a learned table, position_embd.weight",
    "attention.max_alibi_bias": "positions act by ALiBi",
    "attention.sliding_window": "layers with a sliding window may read positions in another way",
    "rope.dimension_sections": "positions have several parts, each with its own dimensions",
    "ssm.state_size": "recurrent layers read no positions",
    "wkv.head_size": "recurrent layers read no positions",
    "shortconv.l_cache": "convolution layers read no positions",
}


@dataclass(frozen=True)
class KVCacheSize:
    """Memory of the KV cache with K and V in one type: bytes a token, and at the file's full window."""

    type: str
    bytes_per_token: int
    bytes_at_full_window: int


@dataclass(frozen=True)
class InspectionReport:
    """What a GGUF file says of itself.

    Attributes:
        path, bytes: the file and its size, or the first part and the size of all.
        parts: every file, in order; one where the model is not split.
        architecture, name: of the model.
        parameters: number of weights.
        types: how many bytes are stored in which tensor type, largest first.
        layers, embedding_length, heads, kv_heads: the model's shape.
        tokenizer: "gpt2 (smollm)", kind and pre-tokenizer; tokens: how many; chat_template: is there one.
        rope: window and scaling as llama.cpp reads them; None where the file states no window (an
            adapter, a projector).
        position_notes: what else the file says of how positions are read, a sentence each.
        cache: memory of the KV cache by type; empty where the shape does not say.
        metadata: every key of the model, with its typed value.
    """

    path: Path
    bytes: int
    parts: tuple[Path, ...]
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
    rope: RopeScaling | None
    position_notes: tuple[str, ...]
    cache: tuple[KVCacheSize, ...]
    metadata: Mapping[str, Typed]


def inspect(path: str | os.PathLike[str]) -> InspectionReport:
    """Read a GGUF file's header and say what it holds.

    Raises:
        ReadError: the system refuses to read the source.
        GGUFError: the file is damaged, cut short or not GGUF.
        UnsupportedModel: a sort of GGUF that is not read.
    """
    file = read_header(path)
    with named(file.path):
        return inspect_header(file)


def inspect_header(file: GGUFFile) -> InspectionReport:
    """As inspect says it, of a header that was read.

    Raises:
        As inspect does, but for the header.
    """
    shape = _Shape(file)
    window = f"{file.architecture}.context_length"
    rope = rope_from_gguf(file) if window in file.metadata else None
    return InspectionReport(
        path=file.path,
        bytes=file.size,
        parts=file.parts,
        architecture=file.architecture,
        name=get(file.metadata, "general.name", str),
        parameters=sum(tensor.elements for tensor in file.tensors.values()),
        types=_bytes_by_type(file),
        layers=shape.number("block_count"),
        embedding_length=shape.number("embedding_length"),
        heads=shape.number("attention.head_count"),
        kv_heads=shape.kv_heads,
        tokenizer=_tokenizer(file),
        tokens=_token_count(file),
        chat_template="tokenizer.chat_template" in file.metadata,
        rope=rope,
        position_notes=_position_notes(file, shape),
        cache=() if rope is None else _cache_sizes(shape, rope.context_length),
        metadata=file.metadata,
    )


class _Shape:
    """The numbers under the architecture's own prefix."""

    def __init__(self, file: GGUFFile) -> None:
        self.architecture = file.architecture
        self._metadata = file.metadata

    def number(self, key: str) -> int | None:
        """A number, or None where it is absent or differs from layer to layer."""
        typed = self.value(key)
        return (
            None
            if typed is None or typed.is_array
            else get(self._metadata, f"{self.architecture}.{key}", int)
        )

    def value(self, key: str) -> Typed | None:
        return self._metadata.get(f"{self.architecture}.{key}")

    def has(self, key: str) -> bool:
        """Whether the key is there and says something: a list, or a value that is not 0 or false."""
        typed = self.value(key)
        return typed is not None and bool(typed.value)

    @property
    def kv_heads(self) -> int | None:
        """As many as there are heads, where the file says nothing else."""
        absent = self.value("attention.head_count_kv") is None
        return self.number("attention.head_count" if absent else "attention.head_count_kv")


def _bytes_by_type(file: GGUFFile) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for tensor in file.tensors.values():
        counted[tensor.type.name] += tensor.nbytes
    return dict(counted.most_common())


def _tokenizer(file: GGUFFile) -> str | None:
    model, pre = (get(file.metadata, f"tokenizer.ggml.{key}", str) for key in ("model", "pre"))
    return f"{model} ({pre})" if model and pre else model


def _token_count(file: GGUFFile) -> int | None:
    tokens = elements(file.metadata, "tokenizer.ggml.tokens")
    return None if tokens is None else len(tokens)


def _position_notes(file: GGUFFile, shape: _Shape) -> tuple[str, ...]:
    said = (text for name, text in _OTHER_POSITIONS.items() if name in file.tensors or shape.has(name))
    return tuple(dict.fromkeys(said))


def _cache_sizes(shape: _Shape, context_length: int) -> tuple[KVCacheSize, ...]:
    """llama.cpp src/llama-kv-cache.cpp: K and V a token, layer and head, in whole blocks."""
    layers, heads = shape.number("block_count"), shape.number("attention.head_count")
    kv_heads, width = shape.kv_heads, shape.number("embedding_length")
    causal = shape.value("attention.causal") is None or shape.has("attention.causal")
    if not layers or not heads or not kv_heads or not width or not causal:
        return ()
    if shape.architecture in _WINDOWED or any(shape.has(key) for key in _OTHER_MEMORY):
        return ()
    keys = shape.number("attention.key_length") or width // heads
    values = shape.number("attention.value_length") or width // heads
    sizes = []
    for kind in KV_CACHE_TYPES:
        if keys % block_elements(kind) or values % block_elements(kind):
            continue
        per_token = layers * kv_heads * (row_bytes(kind, keys) + row_bytes(kind, values))
        sizes.append(KVCacheSize(kind.name, per_token, per_token * context_length))
    return tuple(sizes)
