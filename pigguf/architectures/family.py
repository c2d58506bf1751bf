"""Family: what one kind of model has, as data, and its two descriptions, config.json and GGUF keys.

A config that asks for what llama.cpp's graph of the family does not compute is refused with its key and
value (llama.cpp src/models/*.cpp; transformers' configuration_*.py for keys and defaults).
`pretraining_tp` is not among them: it cuts matrix products in pieces and leaves their sum as it was.

Left out: the tables' vocabulary (table.py), applying them to tensors (rename.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pigguf.architectures.hparam_rules import WHOLE_HEAD, Flag, KeyRule, WholeHead, no_window, stated
from pigguf.architectures.hparams import EPSILON_KEYS, UNTIED, HParams, Norm
from pigguf.architectures.tensor_rules import EXPERT, SIZES, Piece, TensorRule
from pigguf.common.config import Config, as_json
from pigguf.errors import CheckpointError, GGUFError, RopeConflict, UnsupportedModel
from pigguf.gguf_io.metadata import (
    ANOTHER_MAKE,
    Metadata,
    array,
    elements,
    get,
    need,
    shortest_f32,
    u32,
)
from pigguf.rope import RopeOverrides, RopeScaling, read_alibi, read_learned, read_rope, rope_from_metadata
from pigguf.rope.unrotated import ALIBI_BY_LAYERS

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS, above which llama.cpp aborts
MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
CLASS_KEY = "pigguf.hf_class"  # of families that run on another's graph: what an export makes

NOT_COMPUTED = "llama.cpp's graph of this family would compute something else"
UNQUANTIZED = "give the checkpoint as it was before it was quantized"

# None of them, where the tokenizer adds none: transformers has defaults that belong to the published models.
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

Allowed = tuple[tuple[Any, ...], str]
# Keys that must have one of these values, be null or be absent; with what they ask for otherwise.
ONLY: dict[str, Allowed] = {
    "hidden_act": (("silu", "swish"), "another activation than SiLU"),
    "is_causal": ((True,), "attention that is not causal"),
    "num_local_experts": ((0,), "a mixture of experts"),
    "num_experts": ((0,), "a mixture of experts"),
    "quantization_config": ((), "weights that are quantized already"),
    "compression_config": ((), "weights that are quantized already"),
}

# What a config says of the output matrix, for families that do not tie it by default, and that do.
TIED: dict[str, Flag] = {UNTIED: Flag("tie_word_embeddings", default=False, inverted=True)}
TIED_BY_DEFAULT: dict[str, Flag] = {UNTIED: Flag("tie_word_embeddings", default=True, inverted=True)}

SCALING_SECTIONS = ("rope_scaling", "rope_parameters")
FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers, as layer_types has them
WINDOW_KEY, PATTERN_KEY = "attention.sliding_window", "attention.sliding_window_pattern"

Positions = Literal["rope", "learned", "alibi"]


class NamedShape(NamedTuple):
    """A tensor of a model: its full name and its shape, on one side."""

    name: str
    shape: tuple[int, ...]


class NamedRule(NamedTuple):
    """A rule applied to a model: the tensors of both sides, in numbers."""

    hf: tuple[NamedShape, ...]
    gguf: tuple[NamedShape, ...]
    rule: TensorRule


@dataclass(frozen=True)
class Family:
    """A kind of model.

    Attributes:
        architecture: GGUF's name of it.
        classes: transformers' names of it; an export writes the first.
        model_type: transformers' other name of it.
        old_model_types: what it was called before it had a class in transformers.
        section: the config's object that describes the language model; "" where that is the config itself.
        tensors: the table, in the order of the file.
        dropped: pattern of checkpoint tensors to be left out: such as are no weights, or see.
        leaves_out: what a reader must know of that; "" where the model is whole without them.
        renamed: patterns of other names of tensors in checkpoints, with the table's in their place.
        names: this family's config keys, by those of Llama that mean the same; of several the first is
            written, and all are read.
        defaults: transformers' values of keys that a config may leave out, by Llama's names.
        feed_forward: from the embedding length, where a config does not give it.
        kv_heads: from the config and the heads, where it is not num_key_value_heads.
        norm: which norms.
        epsilon: the config's key for what they add, and transformers' default.
        parts: its optional parts, and what a config says of them.
        keys: keys of its own, in the config and in the GGUF.
        only: keys that may have but these values, beyond ONLY; None takes all values.
        positions: a rotation, a table of learned positions, or distances (ALiBi).
        rotary: how much of a head is rotated.
        local_base: the sliding layers may be rotated with another base.
        free_head_dim: heads may be of another width than embedding length / heads.
        sliding_window: the window beyond which the config's attention does not look, or None.
        period: of so many layers the graph lets all but the last look no further than that window, unless
            the file says otherwise; 0: it has no such window.
        check: refuses what else its graph does not compute.
        write: config keys that follow from the shape in a way of the family's own.
        folded: the family runs on another family's graph (the file says which it was: CLASS_KEY).
        export: config keys that an export needs beyond the common ones.
    """

    architecture: str
    classes: tuple[str, ...]
    model_type: str
    tensors: tuple[TensorRule, ...]
    old_model_types: tuple[str, ...] = ()
    section: str = ""
    dropped: str = ""
    leaves_out: str = ""
    renamed: tuple[tuple[str, str], ...] = ()
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    feed_forward: Callable[[int], int] | None = None
    kv_heads: Callable[[Config, int], int] | None = None
    norm: Norm = "rms"
    epsilon: tuple[str, float] = ("rms_norm_eps", 1e-6)
    parts: Mapping[str, Flag] = field(default_factory=lambda: TIED)
    keys: tuple[KeyRule, ...] = ()
    only: Mapping[str, Allowed | None] = field(default_factory=dict)
    positions: Positions = "rope"
    rotary: WholeHead = WHOLE_HEAD
    local_base: bool = False
    free_head_dim: bool = False
    sliding_window: Callable[[Config], int | None] = no_window
    period: int = 0
    check: Callable[[Config, HParams], None] | None = None
    write: Callable[[HParams], Mapping[str, Any]] | None = None
    folded: bool = False
    export: Mapping[str, Any] = field(default_factory=dict)

    # --- the table

    @property
    def embedding(self) -> str:
        """The embedding's name in a checkpoint."""
        return self._hf_name("token_embd.weight")

    @property
    def output(self) -> str:
        """The output matrix's name in a checkpoint; the embedding's where there is never one."""
        return self._hf_name("output.weight") or self.embedding

    @property
    def mixture(self) -> bool:
        """Whether its layers have several feed-forwards to choose from."""
        return any(rule.gguf == "expert_count" for rule in self.keys)

    def _hf_name(self, gguf: str) -> str:
        rules = (rule for rule in self.tensors if rule.gguf[0].name == gguf and rule.hf)
        return next((rule.hf[0].name for rule in rules), "")

    def modules(self, *stems: str, parts: int = 1) -> tuple[str, ...]:
        """The modules of transformers' model that hold weights by these names in a GGUF ("attn_q").

        Args:
            stems: parts of GGUF names, after "blk.{}." where they are a layer's.
            parts: how many of a module's last names tell it from others.
        """
        rules = [rule for rule in self.tensors if rule.gguf[0].name.endswith(".weight")]
        named = {
            ".".join(piece.name.split(".")[-1 - parts : -1]): None
            for rule in rules
            if rule.gguf[0].name.split(".")[-2] in stems
            for piece in rule.hf
        }
        return tuple(named)

    def drops(self, name: str) -> bool:
        """Whether a checkpoint's tensor is none of the model's weights."""
        return re.fullmatch(self.dropped, name) is not None

    def canonical(self, name: str) -> str:
        """A checkpoint's tensor name as the table has it."""
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        return name

    def rules(self, hparams: HParams) -> Iterator[NamedRule]:
        """Every tensor the model must have, in the order of the file."""
        rules = [rule for rule in self.tensors if hparams.has(rule.when)]
        first = next(index for index, rule in enumerate(rules) if rule.of_layer)
        of_layer = [rule for rule in rules if rule.of_layer]
        for rule in rules[:first]:
            yield _named(rule, hparams)
        for layer in range(hparams.layers):
            for rule in of_layer:
                yield _named(rule, hparams, layer)
        for rule in rules[first:]:
            if not rule.of_layer:
                yield _named(rule, hparams)

    # --- config.json

    def _keys(self, config: Mapping[str, Any]) -> Config:
        """The keys that describe the language model."""
        keys = Config(config)
        return (keys.section(self.section) if self.section else None) or keys

    def read_positions(
        self,
        config: Mapping[str, Any],
        tokenizer_config: Mapping[str, Any],
        overrides: RopeOverrides | None = None,
        extended: Config | None = None,
        name: str = "",
    ) -> RopeScaling:
        """How a checkpoint's positions work, from all that it says and what the user says.

        Args and raises as pigguf.rope.read_rope has them.
        """
        overrides = overrides or RopeOverrides()
        keys = self._as_llama(config)
        positions = self._positions(self._number(self._keys(config), "num_hidden_layers"))
        if positions == "learned":
            return read_learned(keys, overrides)
        if overrides.interpolation is not None:
            raise RopeConflict(
                f"--interpolation {overrides.interpolation}: {self.classes[0]} has no table of positions",
                "it is for GPT-2, StarCoder and OPT; --rope-factor interpolates positions that are rotations",
            )
        if positions == "alibi":
            return read_alibi(keys, overrides)
        return read_rope(keys, tokenizer_config, overrides, extended, name)

    def _positions(self, layers: int) -> Positions:
        return "alibi" if ALIBI_BY_LAYERS.get(self.architecture) == layers else self.positions

    def _as_llama(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config with Llama's names for what this family calls otherwise, and the defaults in place."""
        keys = self._keys(config)
        own = {ours: keys.values[name] for ours in self.names if (name := self._name(ours, keys)) in keys}
        defaults = {key: value for key, value in self.defaults.items() if not stated(keys, key)}
        said = {key: value for key, value in keys.values.items() if value is not None}
        language = {**defaults, **said, **own}
        return {**config, self.section: language} if keys.prefix else language

    def read_hparams(self, config: Mapping[str, Any], rope: RopeScaling) -> HParams:
        """The shape that a config.json gives, with positions as decided.

        Raises:
            CheckpointError: a key is missing, of the wrong type, or does not fit another.
            UnsupportedModel: the config asks for what llama.cpp's graph of the family does not do.
        """
        keys = self._keys(config)
        self._refuse_features(keys)
        width, heads = self._number(keys, "hidden_size"), self._number(keys, "num_attention_heads")
        if width % heads and "head_dim" not in keys:
            name = self._name("hidden_size", keys)
            raise keys.invalid(name, f"a multiple of num_attention_heads = {heads}")
        head_dim = self._number(keys, "head_dim", width // heads)
        inner = self.feed_forward(width) if self.feed_forward else None
        experts = [rule for rule in self.keys if rule.gguf == "expert_count"]
        layers = self._number(keys, "num_hidden_layers")
        hparams = HParams(
            architecture=self.architecture,
            hf_class=self.classes[0],
            layers=layers,
            embedding_length=width,
            feed_forward_length=self._number(keys, "intermediate_size", inner),
            heads=heads,
            kv_heads=self.kv_heads(keys, heads)
            if self.kv_heads
            else self._number(keys, "num_key_value_heads", heads),
            head_dim=head_dim,
            rotary_dim=self.rotary.read(keys, head_dim) if self._positions(layers) == "rope" else 0,
            vocab_size=self._number(keys, "vocab_size"),
            norm_epsilon=keys.optional(self.epsilon[0], float, self.epsilon[1]),
            rope=rope,
            norm=self.norm,
            parts=frozenset(part for part, flag in self.parts.items() if flag.read(keys)),
            experts=next((typed.value for rule in experts if (typed := rule.read(keys)) is not None), 0),
            parameters={**self._own_keys(keys), **self._sliding(keys, layers, rope.context_length)},
        )
        self._check(hparams, "config.json: ", CheckpointError)
        if self.check is not None:
            self.check(keys, hparams)
        return hparams

    def with_positions(self, config: Mapping[str, Any], hparams: HParams) -> dict[str, Any]:
        """A checkpoint's config.json with the positions of `hparams` in place of its own.

        Nothing of what it said of scaling stays: transformers lets rope_scaling win over rope_parameters.
        """
        keys = self._keys(config)
        bare = {key: keys.values[key] for key in keys.values if key not in SCALING_SECTIONS}
        language = {**bare, **{self._name(key): value for key, value in hparams.rope.to_config().items()}}
        self.rotary.write(language, hparams.rotary_dim, hparams.head_dim)
        return {**config, self.section: language} if keys.prefix else language

    def config(self, hparams: HParams) -> dict[str, Any]:
        """The config.json of an export, whose weights are bfloat16; token ids are the tokenizer's to add.

        Raises:
            GGUFError: the GGUF leaves a key out for which transformers has another default than the graph.
        """
        llamas = {
            "vocab_size": hparams.vocab_size,
            "hidden_size": hparams.embedding_length,
            "intermediate_size": hparams.feed_forward_length,
            "num_hidden_layers": hparams.layers,
            "num_attention_heads": hparams.heads,
        }
        if self.kv_heads is None:
            llamas["num_key_value_heads"] = hparams.kv_heads
        of_its_own = hparams.head_dim * hparams.heads != hparams.embedding_length
        if of_its_own or hparams.head_dim != self.defaults.get("head_dim", hparams.head_dim):
            llamas["head_dim"] = hparams.head_dim
        keys = {self._name(key): value for key, value in {**llamas, **hparams.rope.to_config()}.items()}
        for rule in self.keys:
            if rule.gguf in hparams.parameters:
                rule.write(keys, hparams.parameters[rule.gguf].value)
            elif rule.gguf == "expert_count":
                rule.write(keys, hparams.experts)
            elif rule.default is not None:  # the graph's value and transformers' may differ
                raise GGUFError(f"metadata key {self.architecture}.{rule.gguf} is missing", ANOTHER_MAKE)
        for part, flag in self.parts.items():
            flag.write(keys, hparams.has(part))
        self.rotary.write(keys, hparams.rotary_dim, hparams.head_dim)
        return {
            "architectures": [self.classes[0]],
            "model_type": self.model_type,
            **keys,
            self.epsilon[0]: shortest_f32(hparams.norm_epsilon),
            **self._sliding_config(hparams),
            **dict.fromkeys(TOKEN_IDS),
            "torch_dtype": "bfloat16",
            **(self.write(hparams) if self.write else {}),
            **self.export,
        }

    def _name(self, key: str, keys: Config | None = None) -> str:
        """This family's name of one of Llama's keys: the one that a config has, or the first."""
        names = self.names.get(key, (key,))
        return next((name for name in names if keys is not None and name in keys), names[0])

    def _number(self, keys: Config, key: str, default: int | None = None) -> int:
        name = self._name(key, keys)
        default = self.defaults.get(key) if default is None else self.defaults.get(key, default)
        return keys.require(name, int) if default is None else keys.optional(name, int, default)

    def _own_keys(self, keys: Config) -> dict[str, Any]:
        read = {rule.gguf: rule.read(keys) for rule in self.keys if rule.gguf != "expert_count"}
        return {key: typed for key, typed in read.items() if typed is not None}

    def _refuse_features(self, keys: Config) -> None:
        allowed_by_key = {**ONLY, **self.only}
        for section in (keys, keys.section("rope_scaling"), keys.section("rope_parameters")):
            for key, allowed in allowed_by_key.items():
                if section is None or allowed is None or key not in section:
                    continue
                values, what = allowed
                if section.values[key] not in values:
                    raise UnsupportedModel(
                        f"{section.says(key)} asks for {what}", NOT_COMPUTED if values else UNQUANTIZED
                    )

    def _sliding(self, keys: Config, layers: int, context: int) -> dict[str, Any]:
        """Keys of the sliding window; where the graph has none, the window must hold the whole context."""
        window = self.sliding_window(keys)
        if window is None:
            self._kinds_of_layers(keys, layers, (FULL,))
            return {}
        kinds = self._kinds_of_layers(keys, layers, (FULL, SLIDING))
        if self.period:
            slides, usual = tuple(kind == SLIDING for kind in kinds), _sliding_layers(self.period, layers)
            pattern = {} if slides == usual else {PATTERN_KEY: array("bool", slides)}
            return {WINDOW_KEY: u32(window), **pattern}
        if window < context:
            raise UnsupportedModel(
                f"config.json: sliding_window = {window} is below the context length {context}, and "
                f"llama.cpp's {self.architecture} graph always attends to everything",
                f"--context {window} converts the part in which both are the same",
            )
        return {}

    def _kinds_of_layers(self, keys: Config, layers: int, allowed: tuple[str, ...]) -> tuple[str, ...]:
        """What layer_types says, or sliding_window_pattern, or what the family has where both are absent."""
        kinds = keys.values.get("layer_types")
        if kinds is None:
            period = keys.optional("sliding_window_pattern", int, self.period) if self.period else 0
            return tuple(SLIDING if slides else FULL for slides in _sliding_layers(period, layers))
        for kind in kinds:
            if kind not in allowed:
                raise UnsupportedModel(
                    f"{keys.file}: {keys.prefix}layer_types has {as_json(kind)}, not {allowed[0]}",
                    NOT_COMPUTED,
                )
        if len(kinds) != layers:
            raise keys.invalid("layer_types", f"a list of {layers}, one for each layer")
        return tuple(kinds)

    def _sliding_config(self, hparams: HParams) -> dict[str, Any]:
        window, pattern = hparams.parameters.get(WINDOW_KEY), hparams.parameters.get(PATTERN_KEY)
        if window is None:
            return {}
        slides = _sliding_layers(self.period, hparams.layers) if pattern is None else pattern.value
        kinds = [SLIDING if each else FULL for each in slides]
        return {"sliding_window": window.value, "layer_types": kinds}

    # --- GGUF keys

    def hparams_from_metadata(self, metadata: Metadata, tensors: Container[str] = ()) -> HParams:
        """The shape that a GGUF gives.

        Args:
            metadata: the file's keys.
            tensors: the names of its tensors, which alone say which optional parts there are; without
                them there are none (to_hf refuses what it is not).

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

        own = self._own_metadata(metadata)
        self._refuse_gguf_features(metadata)
        width, heads = number("embedding_length"), number("attention.head_count")
        head_dim = number("attention.key_length", width // heads)
        if number("attention.value_length", head_dim) != head_dim:
            raise self._differs("attention.value_length", number("attention.value_length"), head_dim)
        rotated = self._positions(number("block_count")) == "rope"
        rotary_dim = number("rope.dimension_count", head_dim) if rotated else 0
        if rotary_dim != head_dim and self.rotary == WHOLE_HEAD and rotated:
            raise self._differs("rope.dimension_count", rotary_dim, head_dim)
        tokens = elements(metadata, "tokenizer.ggml.tokens")  # llama.cpp takes its length, not vocab_size
        hparams = HParams(
            architecture=self.architecture,
            hf_class=self.classes[0],
            layers=number("block_count"),
            embedding_length=width,
            feed_forward_length=number("feed_forward_length"),
            heads=heads,
            kv_heads=number("attention.head_count_kv", heads),
            head_dim=head_dim,
            rotary_dim=rotary_dim,
            vocab_size=number("vocab_size") if tokens is None else len(tokens),
            norm_epsilon=need(metadata, f"{self.architecture}.{EPSILON_KEYS[self.norm]}", float),
            rope=rope_from_metadata(metadata, self.architecture),
            norm=self.norm,
            parts=frozenset(part for part in self.parts if self._has(part, tensors)),
            experts=get(metadata, f"{self.architecture}.expert_count", int, 0) or 0,
            parameters=own,
        )
        self._check(hparams, f"metadata of {self.architecture}: ", GGUFError)
        return hparams

    def _own_metadata(self, metadata: Metadata) -> dict[str, Any]:
        names = [rule.gguf for rule in self.keys if rule.gguf != "expert_count"]
        names += [WINDOW_KEY, PATTERN_KEY] if self.period else []
        own = {name: metadata.get(f"{self.architecture}.{name}") for name in names}
        return {name: typed for name, typed in own.items() if typed is not None}

    def _has(self, part: str, tensors: Container[str]) -> bool:
        """Whether a GGUF has an optional part: one of the tensors that only models with it have."""
        with_it = [rule for rule in self.tensors if rule.when == part]
        without = [rule for rule in self.tensors if rule.when == f"!{part}"]
        if not with_it:
            return not any(_first(rule) in tensors for rule in without)
        names = {_first(rule) for rule in with_it}
        return any(name in tensors for name in names - {_first(rule) for rule in without} or names)

    def _differs(self, key: str, value: int, head_dim: int) -> UnsupportedModel:
        return UnsupportedModel(
            f"metadata key {self.architecture}.{key} is {value}, not the key length {head_dim}", NOT_COMPUTED
        )

    def _refuse_gguf_features(self, metadata: Metadata) -> None:
        experts = f"{self.architecture}.expert_count"
        if get(metadata, experts, int, 0) and not self.mixture:
            raise UnsupportedModel(
                f"metadata key {experts} is {metadata[experts].value}: a mixture of experts", NOT_COMPUTED
            )
        causal = f"{self.architecture}.attention.causal"
        if get(metadata, causal, bool, True) is False:
            raise UnsupportedModel(
                f"metadata key {causal} is false: attention that is not causal", NOT_COMPUTED
            )

    def _check(self, hparams: HParams, where: str, error: type[CheckpointError | GGUFError]) -> None:
        """Refuse numbers that do not fit each other, on which llama.cpp would abort."""
        hint = ANOTHER_MAKE if error is GGUFError else "correct config.json, or download it again"
        if hparams.layers > MAX_LAYERS:
            raise error(
                f"{where}{hparams.layers} layers, more than the {MAX_LAYERS} that llama.cpp takes", hint
            )
        if hparams.heads % hparams.kv_heads:
            raise error(
                f"{where}{hparams.heads} heads cannot share {hparams.kv_heads} key-value heads evenly", hint
            )
        rotated = self._positions(hparams.layers) == "rope"
        if rotated and (hparams.rotary_dim % 2 or not 0 < hparams.rotary_dim <= hparams.head_dim):
            raise error(
                f"{where}{hparams.rotary_dim} of a head's {hparams.head_dim} dimensions cannot be rotated in pairs",
                hint,
            )
        used = hparams.parameters.get("expert_used_count")
        if self.mixture and (used is None or not 0 < used.value <= hparams.experts <= MAX_EXPERTS):
            raise error(
                f"{where}{'none' if used is None else used.value} of {hparams.experts} experts for a token, and "
                f"llama.cpp takes {MAX_EXPERTS} at most",
                hint,
            )
        if hparams.norm_epsilon < 0:
            raise error(
                f"{where}{self.epsilon[0]} is {hparams.norm_epsilon}, not a small positive number", hint
            )
        if hparams.head_dim * hparams.heads != hparams.embedding_length and not self.free_head_dim:
            raise UnsupportedModel(
                f"{where}{hparams.heads} heads of width {hparams.head_dim} are not the embedding length "
                f"{hparams.embedding_length}, as llama.cpp's {self.architecture} graph wants",
                NOT_COMPUTED,
            )
        if hparams.rope.local_rope_theta is not None and not self.local_base:
            raise UnsupportedModel(
                f"{where}a base of its own for sliding layers, {hparams.rope.local_rope_theta:g}",
                NOT_COMPUTED,
            )


def _sliding_layers(period: int, layers: int) -> tuple[bool, ...]:
    """All but the last of each `period`; 0: none (llama.cpp src/llama-hparams.cpp, set_swa_pattern)."""
    return tuple(period > 0 and (layer + 1) % period != 0 for layer in range(layers))


def _first(rule: TensorRule) -> str:
    return rule.gguf[0].name.format(0)


def _named(rule: TensorRule, hparams: HParams, layer: int = 0) -> NamedRule:
    hf = tuple(shape for piece in rule.hf for shape in _spelled(piece, hparams, layer))
    gguf = tuple(shape for piece in rule.gguf for shape in _spelled(piece, hparams, layer))
    return NamedRule(hf, gguf, rule)


def _spelled(piece: Piece, hparams: HParams, layer: int) -> Iterator[NamedShape]:
    """The tensor, or one for each expert where its name says so."""
    shape = tuple(SIZES[size](hparams) for size in piece.shape)
    for expert in range(hparams.experts if EXPERT in piece.name else 1):
        yield NamedShape(piece.name.format(layer, expert=expert), shape)
