"""Tiny seeded GGUF files for the engine's tests: a Llama of two layers whose vocabulary is bytes.

Every metadata key and tensor type can be replaced, so that a test states only what is special about it.
GRAPHS has a model for each graph of llama.cpp that pigguf runs, with every optional feature and without.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pigguf.architectures import FAMILIES, Family
from pigguf.architectures.hparam_rules import FULL_ROTARY
from pigguf.architectures.hparams import UNTIED, HParams
from pigguf.architectures.tensor_names import tensor_mappings
from pigguf.gguf_io import PlannedTensor, TensorType, row_bytes, write_gguf
from pigguf.gguf_io.metadata import TypedValue, array, f32, string, u32
from pigguf.llama_cpp_internals.sliding_window import PATTERN_KEY, WINDOW_KEY
from pigguf.rope import AlibiPositions, LearnedPositions, Positions, UnscaledRope

LAYERS, WIDTH, HEADS, KV_HEADS, FEED_FORWARD, WINDOW = 2, 64, 4, 2, 96, 1024
SPECIAL = ("<unk>", "<s>", "</s>")
TOKENS = SPECIAL + tuple(f"<0x{byte:02X}>" for byte in range(256)) + ("\u2581", "\u2581the", "an")
VOCABULARY = len(TOKENS)
FIRST_BYTE = len(SPECIAL)
# llama.h, enum llama_token_type: normal 1, unknown 2, control 3, byte 6
TOKEN_TYPES = (2, 3, 3, *[6] * 256, 1, 1, 1)

LAYER_SHAPES: dict[str, tuple[int, ...]] = {
    "attn_norm": (WIDTH,),
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (WIDTH * KV_HEADS // HEADS, WIDTH),
    "attn_v": (WIDTH * KV_HEADS // HEADS, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_norm": (WIDTH,),
    "ffn_gate": (FEED_FORWARD, WIDTH),
    "ffn_up": (FEED_FORWARD, WIDTH),
    "ffn_down": (WIDTH, FEED_FORWARD),
}
SHAPES: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (VOCABULARY, WIDTH),
    "output_norm.weight": (WIDTH,),
    "output.weight": (VOCABULARY, WIDTH),
    **{
        f"blk.{layer}.{name}.weight": shape for layer in range(LAYERS) for name, shape in LAYER_SHAPES.items()
    },
}

TOKENIZER: dict[str, TypedValue] = {
    "tokenizer.ggml.model": string("llama"),
    "tokenizer.ggml.tokens": array("str", TOKENS),
    "tokenizer.ggml.scores": array("f32", (0.0,) * VOCABULARY),
    "tokenizer.ggml.token_type": array("i32", TOKEN_TYPES),
    "tokenizer.ggml.bos_token_id": u32(1),
    "tokenizer.ggml.eos_token_id": u32(2),
}

METADATA: dict[str, TypedValue] = {
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
    **TOKENIZER,
}


class TinyModel(NamedTuple):
    """The metadata and tensor shapes of a tiny model, before a test changes them."""

    metadata: Mapping[str, TypedValue]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"].value)


LLAMA = TinyModel(METADATA, SHAPES)


def write_tiny(
    path: Path,
    metadata: Mapping[str, TypedValue | None] | None = None,
    types: Mapping[str, TensorType] | None = None,
    shapes: Mapping[str, tuple[int, ...] | None] | None = None,
    model: TinyModel = LLAMA,
) -> Path:
    """Write a tiny model; metadata, types and shapes replace or add, and None removes."""
    keys = {key: typed for key, typed in {**model.metadata, **(metadata or {})}.items() if typed is not None}
    kept = {name: shape for name, shape in {**model.shapes, **(shapes or {})}.items() if shape is not None}
    random = np.random.default_rng(0)
    tensors = [_planned(random, name, shape, (types or {}).get(name)) for name, shape in kept.items()]
    write_gguf(path, keys, tensors)
    return path


def write_deep(path: Path, layers: int) -> Path:
    """Write the tiny Llama with more layers, to split over devices."""
    shapes = {
        f"blk.{layer}.{name}.weight": shape for layer in range(layers) for name, shape in LAYER_SHAPES.items()
    }
    return write_tiny(path, {"llama.block_count": u32(layers)}, shapes=shapes)


def linear(factor: float, context_length: int = WINDOW) -> dict[str, TypedValue | None]:
    """Return the keys of a context window extended by Position Interpolation."""
    return {
        "llama.rope.scaling.type": string("linear"),
        "llama.rope.scaling.factor": f32(factor),
        "llama.rope.scaling.original_context_length": u32(int(context_length / factor)),
        "llama.context_length": u32(context_length),
    }


def text_tokens(count: int, seed: int = 1) -> list[int]:
    """Return BOS and random bytes as token ids."""
    tokens = np.random.default_rng(seed).integers(FIRST_BYTE, FIRST_BYTE + 256, count - 1)
    return [1, *map(int, tokens)]


def _planned(
    random: np.random.Generator, name: str, shape: tuple[int, ...], type_: TensorType | None
) -> PlannedTensor:
    scale, mean = (0.1, 1.0) if len(shape) == 1 else (2 / np.sqrt(shape[-1]), 0.0)
    values = (random.standard_normal(shape) * scale + mean).astype(np.float32)
    rows = math.prod(shape[:-1]) if len(shape) > 1 else shape[0]
    if type_ is None:
        values = values.reshape(rows, -1)
        return PlannedTensor(name, shape, TensorType.F32, [(0, rows)], lambda a, b: values[a:b])
    # Of other types only the size matters here: zeros are valid blocks of all of them.
    size = row_bytes(type_, shape[-1]) * (values.size // shape[-1])
    return PlannedTensor(name, shape, type_, [(0, rows)], lambda a, b: np.zeros(size, np.uint8))


# ---- every graph ---------------------------------------------------------------------------------

SLIDING_WINDOW = 16
# Numbers of layers by which a graph distinguishes models: Baichuan's positions, Command-R's QK norms.
LAYER_COUNTS = {"baichuan": (32, 40), "command-r": (LAYERS, 64)}
FEATURE_OF_64_LAYERS = "use_qk_norm"
UNSUPPORTED_FEATURE = ("qwen3", "attention_bias")  # which is a bias of the output too, in transformers


def graph(
    family: Family, layers: int, features: frozenset[str], width: int = WIDTH, **sizes: int
) -> TinyModel:
    """Return the tiny model of a family: a window of 64 tokens, optional features, sizes of HParams."""
    window, experts = 64, 4 if family.has_experts else 0
    hparams = HParams(
        architecture=family.architecture,
        hf_class=family.hf_classes[0],
        layers=layers,
        embedding_length=width,
        feed_forward_length=FEED_FORWARD if width == WIDTH else width,
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=width // HEADS,
        rotary_dim=width // HEADS // (1 if family.rotary == FULL_ROTARY else 2),
        vocab_size=VOCABULARY,
        norm_epsilon=1e-5,
        rope=_positions(family, window),
        norm_type=family.norm_type,
        features=features,
        experts=experts,
        extra_keys=_extra_keys(family, layers),
    )
    hparams = replace(hparams, **sizes)
    shapes = {tensor.name: tensor.shape for rule in tensor_mappings(family, hparams) for tensor in rule.gguf}
    return TinyModel(
        {"general.architecture": string(family.architecture), **hparams.to_metadata(), **TOKENIZER}, shapes
    )


def _positions(family: Family, window: int) -> Positions:
    if family.position_type == "learned":
        return LearnedPositions(original_context=window, context_length=window)
    if family.position_type == "alibi":
        return AlibiPositions(context_length=window)
    return UnscaledRope(rope_theta=10000.0, original_context=window, context_length=window)


def _extra_keys(family: Family, layers: int) -> dict[str, TypedValue]:
    own = {
        rule.gguf_key: TypedValue(rule.kind, 1.0 if rule.default is None else rule.default)
        for rule in family.hparam_rules
    }
    own.pop("expert_count", None)
    if family.sliding_window_pattern:
        slides = tuple(layer % 2 == 0 for layer in range(layers))
        own |= {WINDOW_KEY: u32(SLIDING_WINDOW), PATTERN_KEY: array("bool", slides)}
    return own


def _graphs(width: int) -> dict[str, TinyModel]:
    """Return every graph with as few and as many optional features as it can have, the output untied."""
    models: dict[str, TinyModel] = {}
    for family in (family for family in FAMILIES if not family.runs_as_other_architecture):
        own = {
            name for name in family.optional_features if (family.architecture, name) != UNSUPPORTED_FEATURE
        }
        for layers in LAYER_COUNTS.get(family.architecture, (LAYERS,)):
            for features in ({UNTIED} & own, own):
                if (FEATURE_OF_64_LAYERS in features) == (layers == 64):
                    name = ", ".join((family.hf_classes[0], f"{layers} layers", *sorted(features)))
                    tiny = graph(family, layers, frozenset(features), width)
                    models |= {} if tiny in models.values() else {name: tiny}
    return models


GRAPHS = _graphs(WIDTH)
WIDE_GRAPHS = _graphs(256)  # whose rows are a whole number of every type's blocks
