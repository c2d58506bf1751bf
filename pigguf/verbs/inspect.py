"""inspect: what a person wants to know of a GGUF file, from its header alone.

Works on every architecture: what a file does not say is None. Left out: running the model, and
whether this machine has room for it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pigguf.gguf_file import GGUFFile, TensorType, read_header, row_bytes
from pigguf.metadata import Typed, elements, get
from pigguf.rope import RopeScaling, rope_from_metadata

CACHE_TYPES = (TensorType.F16, TensorType.Q8_0, TensorType.Q4_0)


@dataclass(frozen=True)
class CacheSize:
    """Memory of the KV cache with K and V in one type: bytes a token, and at the file's full window."""

    type: str
    bytes_per_token: int
    bytes_at_full_window: int


@dataclass(frozen=True)
class Report:
    """What a GGUF file says of itself.

    Attributes:
        path, bytes: the file and its size.
        architecture, name: of the model.
        parameters: number of weights.
        types: how many bytes are stored in which tensor type, largest first.
        layers, embedding_length, heads, kv_heads: the model's shape.
        tokenizer: "gpt2 (smollm)", kind and pre-tokenizer; tokens: how many; chat_template: is there one.
        rope: window and scaling as llama.cpp reads them.
        cache: memory of the KV cache by type; empty where the shape does not say.
        metadata: every key, with its typed value.
    """

    path: Path
    bytes: int
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
    rope: RopeScaling
    cache: tuple[CacheSize, ...]
    metadata: Mapping[str, Typed]


def inspect(path: str | os.PathLike[str]) -> Report:
    """Read a GGUF file's header and say what it holds.

    Raises:
        GGUFError: the file is damaged, cut short or not GGUF.
        UnsupportedModel: a sort of GGUF that is not read.
    """
    file = read_header(path)
    shape = _Shape(file)
    rope = rope_from_metadata(file.metadata, file.architecture)
    return Report(
        path=file.path,
        bytes=file.size,
        architecture=file.architecture,
        name=get(file.metadata, "general.name", str),
        parameters=sum(tensor.elements for tensor in file.tensors.values()),
        types=_bytes_by_type(file),
        layers=shape.number("block_count"),
        embedding_length=shape.number("embedding_length"),
        heads=shape.number("attention.head_count"),
        kv_heads=shape.number("attention.head_count_kv", shape.number("attention.head_count")),
        tokenizer=_tokenizer(file),
        tokens=_token_count(file),
        chat_template="tokenizer.chat_template" in file.metadata,
        rope=rope,
        cache=_cache_sizes(shape, rope.context_length),
        metadata=file.metadata,
    )


class _Shape:
    """The numbers under the architecture's own prefix."""

    def __init__(self, file: GGUFFile) -> None:
        self._metadata = file.metadata
        self._prefix = file.architecture

    def number(self, key: str, default: int | None = None) -> int | None:
        """A number, or the default where it is absent or differs from layer to layer."""
        typed = self._metadata.get(f"{self._prefix}.{key}")
        if typed is None or typed.is_array:
            return default
        return get(self._metadata, f"{self._prefix}.{key}", int)


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


def _cache_sizes(shape: _Shape, context_length: int) -> tuple[CacheSize, ...]:
    """llama.cpp src/llama-kv-cache.cpp: a row of K and a row of V a token and layer."""
    layers, heads = shape.number("block_count"), shape.number("attention.head_count")
    kv_heads, width = shape.number("attention.head_count_kv", heads), shape.number("embedding_length")
    if not layers or not heads or not kv_heads or not width:
        return ()
    keys = kv_heads * (shape.number("attention.key_length") or width // heads)
    values = kv_heads * (shape.number("attention.value_length") or width // heads)
    sizes = []
    for kind in CACHE_TYPES:
        if keys % 32 or values % 32:  # too narrow for a block of the quantized types
            continue
        per_token = layers * (row_bytes(kind, keys) + row_bytes(kind, values))
        sizes.append(CacheSize(kind.name, per_token, per_token * context_length))
    return tuple(sizes)
