"""Family: what one kind of model has, as data, and its two descriptions, config.json and GGUF keys.

The table of tensors is read both ways. A config that asks for what llama.cpp's graph of the family
does not compute is refused with its key and value (llama.cpp src/models/*.cpp; transformers'
configuration_*.py for keys and defaults). `pretraining_tp` is not among them: it cuts matrix
products in pieces and leaves their sum as it was.

Left out: applying the table to tensors (rename.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pigguf.config import Config, as_json
from pigguf.errors import CheckpointError, GGUFError, UnsupportedModel
from pigguf.metadata import ANOTHER_MAKE, Metadata, elements, get, need, shortest_f32
from pigguf.rope import RopeScaling, rope_from_metadata
from pigguf.spec import ModelSpec

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS, above which llama.cpp aborts
DEFAULT_EPSILON = 1e-6  # transformers' rms_norm_eps where config.json has none

# Sizes of tensors, by the config keys that give them (as messages name them).
VOCAB = "vocab_size"
WIDTH = "hidden_size"
INNER = "intermediate_size"
QUERIES = "num_attention_heads x head_dim"
KEYS = "num_key_value_heads x head_dim"
SIZES: dict[str, Callable[[ModelSpec], int]] = {
    VOCAB: lambda spec: spec.vocab_size,
    WIDTH: lambda spec: spec.embedding_length,
    INNER: lambda spec: spec.feed_forward_length,
    QUERIES: lambda spec: spec.heads * spec.head_dim,
    KEYS: lambda spec: spec.kv_heads * spec.head_dim,
}

When = Literal["always", "attention_bias", "mlp_bias", "untied"]
Policy = bool | Literal["config"]  # so it is in all models of the family, or as the config says

NOT_COMPUTED = "llama.cpp's graph of this family would compute something else"
UNQUANTIZED = "give the checkpoint as it was before it was quantized"
# Keys that must have one of these values, be null or be absent; with what they ask for otherwise.
ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "hidden_act": (("silu", "swish"), "another activation than SiLU"),
    "is_causal": ((True,), "attention that is not causal"),
    "partial_rotary_factor": ((1,), "heads that are rotated in part"),
    "num_local_experts": ((0,), "a mixture of experts"),
    "num_experts": ((0,), "a mixture of experts"),
    "quantization_config": ((), "weights that are quantized already"),
    "compression_config": ((), "weights that are quantized already"),
}


@dataclass(frozen=True)
class TensorRule:
    """One row of a family's table: a tensor of the model, or one of every layer ("{}" in its names).

    Attributes:
        hf, gguf: its name in a checkpoint and in a GGUF.
        shape: keys of SIZES, rows first.
        when: which models have it.
        rotary: its rows are a query's or key's heads, which the two sides order differently.
    """

    hf: str
    gguf: str
    shape: tuple[str, ...]
    when: When = "always"
    rotary: bool = False


class NamedShape(NamedTuple):
    """A rule applied to a model: both names in full, and the shape in numbers."""

    hf: str
    gguf: str
    shape: tuple[int, ...]
    rule: TensorRule


@dataclass(frozen=True)
class Family:
    """A kind of model.

    Attributes:
        architecture: GGUF's name of it.
        classes: transformers' names of it; an export writes the first.
        model_type: transformers' other name of it.
        tensors: the table, in the order of the file.
        dropped: pattern of checkpoint tensors that are not weights, to be left out.
        attention_bias, mlp_bias: whether projections have biases, or the config's key says so.
        free_head_dim: heads may be of another width than embedding length / heads.
        sliding_window: the window beyond which the config's attention does not look, or None.
        export: config keys that an export needs beyond the common ones.
    """

    architecture: str
    classes: tuple[str, ...]
    model_type: str
    tensors: tuple[TensorRule, ...]
    dropped: str
    attention_bias: Policy
    mlp_bias: Policy
    free_head_dim: bool
    sliding_window: Callable[[Config], int | None]
    export: Mapping[str, Any] = field(default_factory=dict)

    def drops(self, name: str) -> bool:
        """Whether a checkpoint's tensor is none of the model's weights."""
        return re.fullmatch(self.dropped, name) is not None

    def shapes(self, spec: ModelSpec) -> Iterator[NamedShape]:
        """Every tensor the model must have, in the order of the file."""
        present = {
            "always": True,
            "attention_bias": spec.attention_bias,
            "mlp_bias": spec.mlp_bias,
            "untied": not spec.tied_embeddings,
        }
        rules = [rule for rule in self.tensors if present[rule.when]]
        first = next(index for index, rule in enumerate(rules) if "{}" in rule.gguf)
        of_layer = [rule for rule in rules if "{}" in rule.gguf]
        for rule in rules[:first]:
            yield _named(rule, spec)
        for layer in range(spec.layers):
            for rule in of_layer:
                yield _named(rule, spec, layer)
        for rule in rules[first + len(of_layer) :]:
            yield _named(rule, spec)

    # --- config.json

    def spec(self, config: Mapping[str, Any], rope: RopeScaling) -> ModelSpec:
        """The shape that a config.json gives, with positions as decided.

        Raises:
            CheckpointError: a key is missing, of the wrong type, or does not fit another.
            UnsupportedModel: the config asks for what llama.cpp's graph of the family does not do.
        """
        keys = Config(config)
        _refuse_features(keys)
        self._refuse_sliding_window(keys, rope.context_length)
        width, heads = keys.require("hidden_size", int), keys.require("num_attention_heads", int)
        if width % heads and "head_dim" not in keys:
            raise keys.invalid("hidden_size", f"a multiple of num_attention_heads = {heads}")
        spec = ModelSpec(
            architecture=self.architecture,
            hf_class=self.classes[0],
            layers=keys.require("num_hidden_layers", int),
            embedding_length=width,
            feed_forward_length=keys.require("intermediate_size", int),
            heads=heads,
            kv_heads=keys.optional("num_key_value_heads", int, heads),
            head_dim=keys.optional("head_dim", int, width // heads),
            vocab_size=keys.require("vocab_size", int),
            norm_epsilon=keys.optional("rms_norm_eps", float, DEFAULT_EPSILON),
            tied_embeddings=keys.optional("tie_word_embeddings", bool, False),
            attention_bias=self._bias(keys, "attention_bias", self.attention_bias),
            mlp_bias=self._bias(keys, "mlp_bias", self.mlp_bias),
            rope=rope,
        )
        self._check(spec, "config.json: ", CheckpointError)
        return spec

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        """The config.json of an export, whose weights are bfloat16; token ids are the tokenizer's to add."""
        keys = {
            "architectures": [self.classes[0]],
            "model_type": self.model_type,
            "vocab_size": spec.vocab_size,
            "hidden_size": spec.embedding_length,
            "intermediate_size": spec.feed_forward_length,
            "num_hidden_layers": spec.layers,
            "num_attention_heads": spec.heads,
            "num_key_value_heads": spec.kv_heads,
            "hidden_act": "silu",
            "rms_norm_eps": shortest_f32(spec.norm_epsilon),
            "tie_word_embeddings": spec.tied_embeddings,
            "torch_dtype": "bfloat16",
        }
        if spec.head_dim * spec.heads != spec.embedding_length:
            keys["head_dim"] = spec.head_dim
        if self.attention_bias == "config":
            keys["attention_bias"] = spec.attention_bias
        if self.mlp_bias == "config":
            keys["mlp_bias"] = spec.mlp_bias
        return {**keys, **spec.rope.config(), **self.export}

    def _bias(self, keys: Config, key: str, policy: Policy) -> bool:
        return keys.optional(key, bool, False) if policy == "config" else policy

    def _refuse_sliding_window(self, keys: Config, context: int) -> None:
        window = self.sliding_window(keys)
        kinds = ("full_attention",) if window is None else ("full_attention", "sliding_attention")
        for kind in keys.values.get("layer_types") or ():
            if kind not in kinds:
                raise UnsupportedModel(
                    f"config.json: layer_types has {as_json(kind)}, not {kinds[0]}", NOT_COMPUTED
                )
        if window is not None and window < context:
            raise UnsupportedModel(
                f"config.json: sliding_window = {window} is below the context length {context}, and "
                f"llama.cpp's {self.architecture} graph always attends to everything",
                f"--context {window} converts the part in which both are the same",
            )

    # --- GGUF keys

    def spec_from_metadata(self, metadata: Metadata, tensors: Container[str] = ()) -> ModelSpec:
        """The shape that a GGUF gives.

        Args:
            metadata: the file's keys.
            tensors: the names of its tensors, which alone say whether embeddings are tied and which
                projections have a bias; without them: tied, no bias (to_hf refuses what it is not).

        Raises:
            GGUFError: a key is missing, of the wrong type, or does not fit another.
            UnsupportedModel: a feature that the family does not have here.
        """

        def number(key: str, default: int | None = None) -> int:
            name = f"{self.architecture}.{key}"
            value = need(metadata, name, int) if default is None else get(metadata, name, int, default)
            if not value:
                raise GGUFError(f"metadata key {name} is {value}", ANOTHER_MAKE)
            return value

        _refuse_gguf_features(metadata, self.architecture)
        width, heads = number("embedding_length"), number("attention.head_count")
        head_dim = number("attention.key_length", width // heads)
        for key in ("attention.value_length", "rope.dimension_count"):
            if number(key, head_dim) != head_dim:
                raise UnsupportedModel(
                    f"metadata key {self.architecture}.{key} is {number(key)}, not the key length {head_dim}",
                    NOT_COMPUTED,
                )
        tokens = elements(metadata, "tokenizer.ggml.tokens")  # llama.cpp takes its length, not vocab_size
        spec = ModelSpec(
            architecture=self.architecture,
            hf_class=self.classes[0],
            layers=number("block_count"),
            embedding_length=width,
            feed_forward_length=number("feed_forward_length"),
            heads=heads,
            kv_heads=number("attention.head_count_kv", heads),
            head_dim=head_dim,
            vocab_size=number("vocab_size") if tokens is None else len(tokens),
            norm_epsilon=need(metadata, f"{self.architecture}.attention.layer_norm_rms_epsilon", float),
            tied_embeddings=not self._has(tensors, "untied", "config"),
            attention_bias=self._has(tensors, "attention_bias", self.attention_bias),
            mlp_bias=self._has(tensors, "mlp_bias", self.mlp_bias),
            rope=rope_from_metadata(metadata, self.architecture),
        )
        self._check(spec, f"metadata of {self.architecture}: ", GGUFError)
        return spec

    def _has(self, tensors: Container[str], when: When, policy: Policy) -> bool:
        if policy != "config":
            return policy
        return any(rule.gguf.format(0) in tensors for rule in self.tensors if rule.when == when)

    def _check(self, spec: ModelSpec, where: str, error: type[CheckpointError | GGUFError]) -> None:
        """Refuse numbers that do not fit each other, on which llama.cpp would abort."""
        hint = ANOTHER_MAKE if error is GGUFError else "correct config.json, or download it again"
        if spec.layers > MAX_LAYERS:
            raise error(f"{where}{spec.layers} layers, more than the {MAX_LAYERS} that llama.cpp takes", hint)
        if spec.heads % spec.kv_heads:
            raise error(
                f"{where}{spec.heads} heads cannot share {spec.kv_heads} key-value heads evenly", hint
            )
        if spec.head_dim % 2:
            raise error(f"{where}heads of width {spec.head_dim} cannot be rotated in pairs", hint)
        if spec.norm_epsilon < 0:
            raise error(f"{where}rms_norm_eps is {spec.norm_epsilon}, not a small positive number", hint)
        if spec.head_dim * spec.heads != spec.embedding_length and not self.free_head_dim:
            raise UnsupportedModel(
                f"{where}{spec.heads} heads of width {spec.head_dim} are not the embedding length "
                f"{spec.embedding_length}, as llama.cpp's {self.architecture} graph wants",
                NOT_COMPUTED,
            )


def _named(rule: TensorRule, spec: ModelSpec, layer: int = 0) -> NamedShape:
    shape = tuple(SIZES[size](spec) for size in rule.shape)
    return NamedShape(rule.hf.format(layer), rule.gguf.format(layer), shape, rule)


def _refuse_features(keys: Config) -> None:
    sections = [keys, keys.section("rope_scaling"), keys.section("rope_parameters")]
    for section in sections:
        for key, (allowed, what) in ONLY.items():
            if section is not None and key in section and section.values[key] not in allowed:
                raise UnsupportedModel(
                    f"{section.says(key)} asks for {what}", NOT_COMPUTED if allowed else UNQUANTIZED
                )


def _refuse_gguf_features(metadata: Metadata, architecture: str) -> None:
    experts = f"{architecture}.expert_count"
    if get(metadata, experts, int, 0):
        raise UnsupportedModel(
            f"metadata key {experts} is {metadata[experts].value}: a mixture of experts", NOT_COMPUTED
        )
    causal = f"{architecture}.attention.causal"
    if get(metadata, causal, bool, True) is False:
        raise UnsupportedModel(f"metadata key {causal} is false: attention that is not causal", NOT_COMPUTED)
