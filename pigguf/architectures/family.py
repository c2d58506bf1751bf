"""The description of a model family: what converting and exporting a family needs to know, as data.

Each family is an instance of Family in a module of its own (llama.py, gemma3.py, ...). What is done with it:
config_reader.py and metadata_reader.py read hyperparameters, config_writer.py writes config.json,
hparam_checks.py checks, tensor_names.py and tensor_mapping.py map tensors.

Sources: llama.cpp src/models/*.cpp for what a graph computes; transformers' configuration_*.py for config
keys and their defaults. `pretraining_tp` is not checked: it splits matrix products and leaves their sum
unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pigguf.architectures.hparam_rules import (
    FULL_ROTARY,
    FeatureFlag,
    FullRotary,
    HParamRule,
    no_sliding_window,
)
from pigguf.architectures.hparams import UNTIED, HParams, NormType
from pigguf.architectures.tensor_rules import TensorRule
from pigguf.common.json_config import JsonConfig
from pigguf.llama_cpp_internals.graph_inputs import ALIBI_LAYER_COUNTS

# GGUF key of families that run as another architecture: the transformers class that an export writes.
HF_CLASS_KEY = "pigguf.hf_class"

NOT_COMPUTED_HINT = "llama.cpp's graph of this family would compute something else"

# The allowed values of a config key, and what any other value asks for.
AllowedValues = tuple[tuple[Any, ...], str]
# For all families. A key may also be null or absent.
DEFAULT_ALLOWED_VALUES: dict[str, AllowedValues] = {
    "hidden_act": (("silu", "swish"), "another activation than SiLU"),
    "is_causal": ((True,), "attention that is not causal"),
    "num_local_experts": ((0,), "a mixture of experts"),
    "num_experts": ((0,), "a mixture of experts"),
    "quantization_config": ((), "weights that are quantized already"),
    "compression_config": ((), "weights that are quantized already"),
}

# The output matrix of its own, for families whose transformers default is not to tie it, and to tie it.
UNTIED_BY_DEFAULT: dict[str, FeatureFlag] = {
    UNTIED: FeatureFlag("tie_word_embeddings", default=False, inverted=True)
}
TIED_BY_DEFAULT: dict[str, FeatureFlag] = {
    UNTIED: FeatureFlag("tie_word_embeddings", default=True, inverted=True)
}

PositionType = Literal["rope", "learned", "alibi"]


@dataclass(frozen=True)
class Family:
    """A model family: one transformers model class and the llama.cpp graph that runs it.

    Attributes:
        architecture: general.architecture of its GGUF files.
        hf_classes: its transformers classes; an export writes the first.
        model_type: its transformers model_type.
        tensor_rules: its tensors, in the order of the file.
        legacy_model_types: its model_types before transformers had a class for it.
        config_section: the object in config.json that describes the language model; "" for the top level.
        ignored_tensors: regular expression of the checkpoint's tensors that are not converted: buffers, and
            the weights of a vision tower.
        ignored_tensors_note: what to tell the user about ignored weights; "" if the model is whole without
            them.
        tensor_name_aliases: (regular expression, replacement) for other names of tensors in checkpoints.
        config_key_aliases: this family's names of Llama's config keys. The first of several is written, all
            are read.
        config_defaults: transformers' defaults for keys that a config may omit, by Llama's names.
        default_intermediate_size: computes intermediate_size from hidden_size where a config omits it.
        read_kv_heads: reads the number of KV heads from a config and the number of heads; None if the key is
            num_key_value_heads.
        norm_type: RMS norm or layer norm.
        norm_epsilon_key: the config key of the norms' epsilon.
        norm_epsilon_default: transformers' default of it.
        optional_features: features that some of its models have, and how a config switches them on.
        hparam_rules: hyperparameters that only this family has.
        allowed_values: config keys that allow only some values, in addition to DEFAULT_ALLOWED_VALUES; None
            allows all.
        position_type: rotary, learned or ALiBi positions.
        rotary: how many dimensions of a head are rotated.
        has_local_rope_theta: whether sliding layers may have a rope_theta of their own.
        allows_custom_head_dim: whether head_dim may differ from hidden_size / num_attention_heads.
        read_sliding_window: reads the sliding window from a config; None if attention is not limited.
        sliding_window_pattern: of each group of this many layers all but the last slide, unless the config
            says otherwise; 0 if the graph has no sliding window.
        check_config: checks for what else the graph does not compute.
        export_config_from_hparams: config keys of an export that are derived from the hyperparameters.
        export_config: config keys of an export that are always the same.
        runs_as_other_architecture: whether llama.cpp has no graph for it and it runs on another family's; the
            GGUF then has HF_CLASS_KEY.
    """

    architecture: str
    hf_classes: tuple[str, ...]
    model_type: str
    tensor_rules: tuple[TensorRule, ...]
    legacy_model_types: tuple[str, ...] = ()
    config_section: str = ""
    ignored_tensors: str = ""
    ignored_tensors_note: str = ""
    tensor_name_aliases: tuple[tuple[str, str], ...] = ()
    config_key_aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    config_defaults: Mapping[str, Any] = field(default_factory=dict)
    default_intermediate_size: Callable[[int], int] | None = None
    read_kv_heads: Callable[[JsonConfig, int], int] | None = None
    norm_type: NormType = "rms"
    norm_epsilon_key: str = "rms_norm_eps"
    norm_epsilon_default: float = 1e-6
    optional_features: Mapping[str, FeatureFlag] = field(default_factory=lambda: UNTIED_BY_DEFAULT)
    hparam_rules: tuple[HParamRule, ...] = ()
    allowed_values: Mapping[str, AllowedValues | None] = field(default_factory=dict)
    position_type: PositionType = "rope"
    rotary: FullRotary = FULL_ROTARY
    has_local_rope_theta: bool = False
    allows_custom_head_dim: bool = False
    read_sliding_window: Callable[[JsonConfig], int | None] = no_sliding_window
    sliding_window_pattern: int = 0
    check_config: Callable[[JsonConfig, HParams], None] | None = None
    export_config_from_hparams: Callable[[HParams], Mapping[str, Any]] | None = None
    export_config: Mapping[str, Any] = field(default_factory=dict)
    runs_as_other_architecture: bool = False

    @property
    def has_experts(self) -> bool:
        """Whether its layers are a mixture of experts."""
        return any(rule.gguf_key == "expert_count" for rule in self.hparam_rules)


def position_type(family: Family, layers: int) -> PositionType:
    """Return how a model encodes positions; for Baichuan that depends on its number of layers."""
    return "alibi" if ALIBI_LAYER_COUNTS.get(family.architecture) == layers else family.position_type
