"""Tiny seeded GGUF files for the engine's tests: a Llama of two layers whose vocabulary is bytes.

Every metadata key and tensor type can be replaced, so that a test says only what is special about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pigguf.gguf_file import PlannedTensor, TensorType, row_bytes, write_gguf
from pigguf.metadata import Typed, array, f32, string, u32

LAYERS, WIDTH, HEADS, KV_HEADS, FEED_FORWARD, WINDOW = 2, 64, 4, 2, 96, 1024
SPECIAL = ("<unk>", "<s>", "</s>")
TOKENS = SPECIAL + tuple(f"<0x{byte:02X}>" for byte in range(256)) + ("\u2581", "\u2581the", "an")
VOCABULARY = len(TOKENS)
FIRST_BYTE = len(SPECIAL)
# llama.h, enum llama_token_type: normal 1, unknown 2, control 3, byte 6
TOKEN_TYPES = (2, 3, 3, *[6] * 256, 1, 1, 1)

SHAPES: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (VOCABULARY, WIDTH),
    "output_norm.weight": (WIDTH,),
    "output.weight": (VOCABULARY, WIDTH),
    **{
        f"blk.{layer}.{name}.weight": shape
        for layer in range(LAYERS)
        for name, shape in {
            "attn_norm": (WIDTH,),
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (WIDTH * KV_HEADS // HEADS, WIDTH),
            "attn_v": (WIDTH * KV_HEADS // HEADS, WIDTH),
            "attn_output": (WIDTH, WIDTH),
            "ffn_norm": (WIDTH,),
            "ffn_gate": (FEED_FORWARD, WIDTH),
            "ffn_up": (FEED_FORWARD, WIDTH),
            "ffn_down": (WIDTH, FEED_FORWARD),
        }.items()
    },
}

METADATA: dict[str, Typed] = {
    "general.architecture": string("llama"),
    "general.name": string("tiny"),
    "llama.context_length": u32(WINDOW),
    "llama.embedding_length": u32(WIDTH),
    "llama.feed_forward_length": u32(FEED_FORWARD),
    "llama.block_count": u32(LAYERS),
    "llama.attention.head_count": u32(HEADS),
    "llama.attention.head_count_kv": u32(KV_HEADS),
    "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
    "llama.rope.dimension_count": u32(WIDTH // HEADS),
    "llama.rope.freq_base": f32(10000.0),
    "tokenizer.ggml.model": string("llama"),
    "tokenizer.ggml.tokens": array("str", TOKENS),
    "tokenizer.ggml.scores": array("f32", (0.0,) * VOCABULARY),
    "tokenizer.ggml.token_type": array("i32", TOKEN_TYPES),
    "tokenizer.ggml.bos_token_id": u32(1),
    "tokenizer.ggml.eos_token_id": u32(2),
}


def write_tiny(
    path: Path,
    metadata: Mapping[str, Typed | None] | None = None,
    types: Mapping[str, TensorType] | None = None,
    shapes: Mapping[str, tuple[int, ...] | None] | None = None,
) -> Path:
    """Write the tiny model; keys, types and shapes replace or add, None takes away."""
    keys = {key: typed for key, typed in {**METADATA, **(metadata or {})}.items() if typed is not None}
    wanted = {name: shape for name, shape in {**SHAPES, **(shapes or {})}.items() if shape is not None}
    random = np.random.default_rng(0)
    tensors = [_planned(random, name, shape, (types or {}).get(name)) for name, shape in wanted.items()]
    write_gguf(path, keys, tensors)
    return path


def linear(factor: float, context_length: int = WINDOW) -> dict[str, Typed | None]:
    """The keys of a window extended by Position Interpolation."""
    return {
        "llama.rope.scaling.type": string("linear"),
        "llama.rope.scaling.factor": f32(factor),
        "llama.rope.scaling.original_context_length": u32(int(context_length / factor)),
        "llama.context_length": u32(context_length),
    }


def text_tokens(count: int, seed: int = 1) -> list[int]:
    """BOS and random bytes as tokens."""
    drawn = np.random.default_rng(seed).integers(FIRST_BYTE, FIRST_BYTE + 256, count - 1)
    return [1, *map(int, drawn)]


def _planned(
    random: np.random.Generator, name: str, shape: tuple[int, ...], kind: TensorType | None
) -> PlannedTensor:
    spread, middle = (0.1, 1.0) if len(shape) == 1 else (2 / np.sqrt(shape[-1]), 0.0)
    values = (random.standard_normal(shape) * spread + middle).astype(np.float32).reshape(shape[0], -1)
    if kind is None:
        return PlannedTensor(name, shape, TensorType.F32, [(0, shape[0])], lambda a, b: values[a:b])
    # Of other types only the size matters here: zeros are valid blocks of all of them.
    size = row_bytes(kind, shape[-1]) * (values.size // shape[-1])
    return PlannedTensor(name, shape, kind, [(0, shape[0])], lambda a, b: np.zeros(size, np.uint8))
